"""The entrypoint's supervisor: runs torchrun, and runs it again after failures, until the run has ended. No torch."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeVar

from cpmbee_job.errors import CancelledError, CpmbeeError, DamagedError, ExitCode, JobFailedError, NotFoundError
from cpmbee_job.process import parent_watch, pod
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import read_checkpoint_pointer
from cpmbee_job.run.run import Run, exit_code
from cpmbee_job.store.retry import with_retries
from cpmbee_job.train.attempt_log import upload_leftover_logs
from cpmbee_job.train.failures import FAILURE_ENV, Failure
from cpmbee_job.train.oom import OomWatch
from cpmbee_job.train.output import metrics

T = TypeVar("T")

MAX_IDLE_STARTS = 20
"""The run fails after this many starts of torchrun without a newer checkpoint."""
MAX_PAUSE = 30.0
"""Seconds between two starts."""
POLL_INTERVAL = 1.0
"""Seconds between two checks of a running torchrun."""
STOP_GRACE = 3.0
"""Seconds that torchrun may continue without workers after a stop: it may wait for a pod that is gone."""
RESULT_GRACE = 15.0
"""Seconds that torchrun may continue without workers before the supervisor checks whether the run has ended."""


@dataclass(frozen=True)
class End:
    """The container's exit code and termination message."""

    exit_code: int
    reason: str


class Supervisor:
    """Runs torchrun until the run ends, or until this container is asked to stop."""

    def __init__(self, run: Run, processes: int) -> None:
        self.run = run
        self.processes = processes
        self.stopping = False
        self.torchrun: subprocess.Popen[bytes] | None = None
        self.run_name = keys.run_name(run.url)
        self.metrics_environment: dict[str, str] = {}
        self.oom = OomWatch(self._newest_checkpoint)
        signal.signal(signal.SIGTERM, self._on_stop_signal)
        signal.signal(signal.SIGINT, self._on_stop_signal)
        parent_watch.watch(parent_watch.parent(), self._on_parent_exit)

    def supervise(self) -> End:
        idle_starts, pause, newest = 0, 1.0, self._newest_checkpoint()
        stalled_at: list[int] = []  # steps of the last starts, if they all stalled
        with (
            tempfile.TemporaryDirectory(prefix="cpmbee-") as folder,
            metrics.served(self.run_name, Path(folder)) as self.metrics_environment,
        ):
            failure_file = Path(folder) / "failure.json"
            while True:
                # End?
                result = self._retried(self.run.result)
                if result is not None:
                    return End(exit_code(result), str(result["reason"]))
                failure = Failure.read(failure_file)
                if failure is not None and failure.permanent:
                    return End(failure.exit_code, failure.reason)
                if self.stopping:
                    return End(CancelledError.exit_code, "stopped on request")

                # Fail the run?
                deadline = self._retried(self.run.deadline)
                if deadline is not None and time.time() > deadline:
                    self._fail_run(JobFailedError(self.run.deadline_reason))
                    continue
                stalled_at = [*stalled_at, failure.step] if failure and failure.exit_code == ExitCode.STALLED else []
                limit = self.run.spec.train.max_failures
                if failure and stalled_at[-limit:] == [failure.step] * limit:
                    self._fail_run(JobFailedError(f"{failure.reason}, {limit} times at step {failure.step}"))
                    continue
                if idle_starts:
                    worker_reason = failure.reason if failure else "a worker was killed or exited without a message"
                    reason = self.oom.reason or worker_reason
                    sys.stderr.write(f"restarting the workers in {pause:.0f} s: {reason}\n")
                    if idle_starts == MAX_IDLE_STARTS:
                        self._fail_run(CpmbeeError(f"no newer checkpoint after {MAX_IDLE_STARTS} starts: {reason}"))
                        continue
                    self._sleep(pause)

                # Train
                failure_file.unlink(missing_ok=True)
                self._run_torchrun(failure_file)
                upload_leftover_logs(Path(folder), self.run.store)
                step = self._newest_checkpoint()
                idle_starts = 1 if step > newest else idle_starts + 1
                pause = 1.0 if step > newest else min(pause * 2, MAX_PAUSE)
                newest = max(step, newest)

    def _run_torchrun(self, failure_file: Path) -> None:
        command = [sys.executable, "-m", "torch.distributed.run"]
        processes = self.processes
        if "PET_RDZV_ENDPOINT" in os.environ:
            processes = int(os.environ.get("PET_NPROC_PER_NODE", "1"))
        else:
            command += ["--standalone", "--nnodes=1", f"--nproc-per-node={processes}", "--max-restarts=0"]
            command += ["--local-addr=127.0.0.1"]  # the host name may not resolve
        environment = {
            # With a shared store, a scale-up can split the world, and stale keys remain.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "OMP_NUM_THREADS": str(max(1, pod.num_cpus() // processes)),
            **os.environ,
            **parent_watch.parent_environment(),
            **self.metrics_environment,
            FAILURE_ENV: str(failure_file),
            "TMPDIR": str(failure_file.parent),  # deleted with the scratch files of killed processes
        }
        self.oom.begin()
        metrics.TORCHRUN_STARTS.labels(self.run_name).inc()
        self.torchrun = subprocess.Popen([*command, "-m", "cpmbee_job.train.worker", self.run.url], env=environment)
        if self.stopping:
            self.torchrun.terminate()
        self._wait(self.torchrun, failure_file)
        self.torchrun = None

    def _wait(self, torchrun: "subprocess.Popen[bytes]", failure_file: Path) -> None:
        """Wait until torchrun exits, and make it exit once its workers cannot continue.

        On a cluster, torchrun restarts workers and never gives up. It can block for minutes on lost peers, at start and
        at exit, and ignores signals meanwhile.
        """
        had_workers_at, has_failed_run = time.monotonic(), False
        while torchrun.returncode is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                torchrun.wait(POLL_INTERVAL)
            self.oom.poll()
            if self.oom.count >= self.run.spec.train.max_failures and not has_failed_run:
                has_failed_run = True
                reason = f"{self.oom.reason}, {self.oom.count} times without a newer checkpoint"
                self._fail_run(JobFailedError(reason, hint="raise workers.memory, or lower train.batch_size"))
                torchrun.terminate()
            workers = _children(torchrun.pid)
            if workers and _failure_code(failure_file) == ExitCode.STALLED:
                for pid in workers:  # a hanging worker ignores SIGTERM, and torchrun would wait for it
                    _send(pid, signal.SIGKILL)
            if workers:
                had_workers_at = time.monotonic()
                continue
            seconds = time.monotonic() - had_workers_at
            if seconds > STOP_GRACE and (self.stopping or _failure_code(failure_file) == CancelledError.exit_code):
                torchrun.kill()
            elif seconds > RESULT_GRACE:
                had_workers_at = time.monotonic()
                if self._retried(self.run.result) is not None:
                    torchrun.kill()

    def _fail_run(self, error: CpmbeeError) -> None:
        """Write a failed result, unless the run has a result already."""
        steps = self._newest_checkpoint()
        self._retried(partial(self.run.fail, error, steps=steps))

    def _on_stop_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Send SIGTERM to the workers; a second signal terminates torchrun.

        The workers agree on the step after which they stop, then torchrun exits too. torchrun itself would kill them
        after 30 s, however long a step takes.
        """
        torchrun = self.torchrun
        if torchrun is not None:
            workers = _children(torchrun.pid)
            if self.stopping or not workers:
                torchrun.terminate()
            for pid in workers:
                _send(pid, signal.SIGTERM)
        self.stopping = True

    def _on_parent_exit(self) -> None:
        """Kill torchrun, but end normally, so that the temporary folder is deleted."""
        self.stopping = True
        if self.torchrun is not None:
            self.torchrun.kill()

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < end:
            time.sleep(0.1)

    def _newest_checkpoint(self) -> int:
        """Return the step of the newest checkpoint; 0 if there is none, or if the pointer is corrupt."""
        try:
            return self._retried(partial(read_checkpoint_pointer, self.run.store, keys.LATEST)).step
        except (NotFoundError, DamagedError):
            return 0

    def _retried(self, task: Callable[[], T]) -> T:
        """Retry `task` while the store fails, unless the container is asked to stop."""
        return with_retries(task, should_stop=lambda: self.stopping)


def _failure_code(failure_file: Path) -> int | None:
    failure = Failure.read(failure_file)
    return None if failure is None else failure.exit_code


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # the process may have just exited
        os.kill(pid, number)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
