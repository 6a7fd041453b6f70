"""What a training container's entrypoint does: it keeps torchrun going until the run has ended."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from cpmbee_job.errors import (
    CancelledError,
    CpmbeeError,
    DamagedError,
    ExitCode,
    JobFailedError,
    NotFoundError,
    StoreError,
)
from cpmbee_job.process import contract, parent_watch, pod
from cpmbee_job.run import keys
from cpmbee_job.run.pointers import read_checkpoint_pointer
from cpmbee_job.run.run import Run, exit_code
from cpmbee_job.store.retry import patiently
from cpmbee_job.train.failures import FAILURE_ENV, Failure
from cpmbee_job.train.oom import MemoryWatch
from cpmbee_job.train.output import metrics

MAX_IDLE_STARTS = 20
"""Starts of torchrun without a newer checkpoint after which the run is given up."""
LONGEST_PAUSE = 30.0
"""Seconds between two starts, at most."""
LOOK_INTERVAL = 1.0
"""Seconds between two looks at what the kernel has killed."""

LONGEST_TAIL = 1 << 20
"""Bytes of a killed worker's log that are kept."""
LONGEST_FAREWELL = 15.0
"""Seconds for which torchrun may go on without workers when the run has ended."""
LONGEST_GOODBYE = 3.0
"""The same when they have stopped on request: it may wait for a peer that was killed meanwhile."""


@dataclass(frozen=True)
class End:
    """How the container ends, and why."""

    exit_code: int
    reason: str


class Supervisor:
    """Runs torchrun until the run has ended, or this container was asked to."""

    def __init__(self, run: Run, processes: int) -> None:
        self.run = run
        self.processes = processes
        self.stopping = False
        self.torchrun: subprocess.Popen[bytes] | None = None
        self.run_name = keys.run_name(run.url)
        self.metrics_environment: dict[str, str] = {}
        self.memory = MemoryWatch(self._newest_checkpoint)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        parent_watch.end_with(parent_watch.owner(), self._orphaned)

    def supervise(self) -> End:
        """Returns with the run's own end, or after a requested stop."""
        idle_starts, pause, newest = 0, 1.0, self._newest_checkpoint()
        hung_at: list[int] = []
        with (
            tempfile.TemporaryDirectory(prefix="cpmbee-") as folder,
            metrics.served(self.run_name, Path(folder)) as self.metrics_environment,
        ):
            failure_file = Path(folder) / "failure.json"
            while True:
                result = patiently(self.run.result, in_a_hurry=self._is_stopping)
                if result is not None:
                    return End(exit_code(result), str(result["reason"]))
                failure = Failure.read(failure_file)
                if failure is not None and failure.permanent:
                    return End(failure.exit_code, failure.reason)
                if self.stopping:
                    return End(CancelledError.exit_code, "stopped on request")
                ends_at = patiently(self.run.deadline, in_a_hurry=self._is_stopping)
                if ends_at is not None and time.time() > ends_at:
                    self._give_up(JobFailedError(self.run.deadline_reason))
                    continue
                hung_at = [*hung_at, failure.step] if failure and failure.exit_code == ExitCode.STALLED else []
                limit = self.run.spec.train.max_failures
                if failure and hung_at[-limit:] == [failure.step] * limit:
                    self._give_up(JobFailedError(f"{failure.reason}, {limit} times at step {failure.step}"))
                    continue
                if idle_starts:
                    why = self.memory.reason or (
                        failure.reason if failure else "a worker ended without a word (killed?)"
                    )
                    sys.stderr.write(f"starting again in {pause:.0f} s: {why}\n")
                    if idle_starts == MAX_IDLE_STARTS:
                        self._give_up(CpmbeeError(f"no progress in {MAX_IDLE_STARTS} starts: {why}"))
                        continue
                    self._sleep(pause)
                failure_file.unlink(missing_ok=True)
                self._torchrun(failure_file)
                self._keep_logs(failure_file.parent)
                step = self._newest_checkpoint()
                idle_starts = 1 if step > newest else idle_starts + 1
                pause = 1.0 if step > newest else min(pause * 2, LONGEST_PAUSE)
                newest = max(step, newest)

    def _torchrun(self, failure_file: Path) -> None:
        command = [sys.executable, "-m", "torch.distributed.run"]
        processes = self.processes
        if "PET_RDZV_ENDPOINT" in os.environ:
            processes = int(os.environ.get("PET_NPROC_PER_NODE", "1"))
        else:
            command += ["--standalone", "--nnodes=1", f"--nproc-per-node={processes}", "--max-restarts=0"]
            command += ["--local-addr=127.0.0.1"]  # this machine's name need not resolve
        environment = {
            # With a shared store a scale-up can split the world, and stale keys stay.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "OMP_NUM_THREADS": str(max(1, pod.num_cpus() // processes)),
            **os.environ,
            **parent_watch.as_owner(),
            **self.metrics_environment,
            FAILURE_ENV: str(failure_file),
            "TMPDIR": str(failure_file.parent),  # a killed process leaves its scratch files to us
        }
        self.memory.begin()
        metrics.TORCHRUN_STARTS.labels(self.run_name).inc()
        self.torchrun = subprocess.Popen([*command, "-m", "cpmbee_job.train.worker", self.run.url], env=environment)
        if self.stopping:
            self.torchrun.terminate()
        self._watch(self.torchrun, failure_file)
        self.torchrun = None

    def _watch(self, torchrun: "subprocess.Popen[bytes]", failure_file: Path) -> None:
        """Until torchrun has ended. On a cluster it starts workers again by itself, and knows no reason to give up; it
        waits minutes for lost peers, to begin as to end, where not even a signal reaches it."""
        with_workers_at, given_up = time.monotonic(), False
        while torchrun.returncode is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                torchrun.wait(LOOK_INTERVAL)
            self.memory.look()
            if self.memory.ends >= self.run.spec.train.max_failures and not given_up:
                given_up = True
                again = f"{self.memory.reason}, {self.memory.ends} times without a newer checkpoint"
                self._give_up(JobFailedError(again, hint="raise workers.memory, or lower train.batch_size"))
                torchrun.terminate()
            workers = _children(torchrun.pid)
            if workers and _has_failed_with(failure_file, ExitCode.STALLED):
                for pid in workers:  # what hangs hears no SIGTERM, and torchrun would wait for it
                    _send(pid, signal.SIGKILL)
            if workers:
                with_workers_at = time.monotonic()
                continue
            alone = time.monotonic() - with_workers_at
            if alone > LONGEST_GOODBYE and (self.stopping or _has_failed_with(failure_file, CancelledError.exit_code)):
                torchrun.kill()
            elif alone > LONGEST_FAREWELL:
                with_workers_at = time.monotonic()
                if patiently(self.run.result, in_a_hurry=self._is_stopping) is not None:
                    torchrun.kill()

    def _keep_logs(self, folder: Path) -> None:
        """Bring into the store what workers that were killed have left of their logs; one try must do."""
        for file in folder.glob("attempt-*.log"):
            text = file.read_bytes()[-LONGEST_TAIL:]
            key = keys.log_key(contract.pod_name(), int(file.stem.partition("-")[2]))
            with contextlib.suppress(StoreError):
                self.run.store.put(key, text)
            file.unlink()

    def _give_up(self, error: CpmbeeError) -> None:
        """End the run for good; the result that is there afterwards is the one that counts."""
        fields = {"steps": self._newest_checkpoint()}
        patiently(partial(self.run.fail, error, **fields), in_a_hurry=self._is_stopping)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        """Ask the workers, not torchrun: it would kill them after 30 s, whatever a step takes. They agree on the step
        to stop at, and torchrun ends with them. A second signal ends torchrun itself."""
        torchrun = self.torchrun
        if torchrun is not None:
            workers = _children(torchrun.pid)
            if self.stopping or not workers:
                torchrun.terminate()
            for pid in workers:
                _send(pid, signal.SIGTERM)
        self.stopping = True

    def _orphaned(self) -> None:
        """Nobody waits for us any more: end as after a kill, only tidily."""
        self.stopping = True
        if self.torchrun is not None:
            self.torchrun.kill()

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < end:
            time.sleep(0.1)

    def _newest_checkpoint(self) -> int:
        """Step of the newest checkpoint, which is progress; 0 where there is none, or a damaged pointer."""
        try:
            latest = partial(read_checkpoint_pointer, self.run.store, keys.LATEST)
            return patiently(latest, in_a_hurry=self._is_stopping).step
        except (NotFoundError, DamagedError):
            return 0

    def _is_stopping(self) -> bool:
        return self.stopping


def _has_failed_with(failure_file: Path, exit_code: int) -> bool:
    """Why the workers have ended: 75 (stalled), or 103 where one pod of the world was asked to stop."""
    failure = Failure.read(failure_file)
    return failure is not None and failure.exit_code == exit_code


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may just have ended
        os.kill(pid, number)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
