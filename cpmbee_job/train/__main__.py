"""The entrypoint of a training container: `python -m cpmbee_job.train RUN_URL`.

Supervises torchrun: starts it again after an end worth retrying, and ends with the run's own exit code once its result
is in the store. On a cluster torchrun takes its world from `PET_*` variables; elsewhere from `--processes`.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import FrameType

from cpmbee_job import contract, lifeline
from cpmbee_job.errors import CancelledError, CpmbeeError, NotFoundError
from cpmbee_job.run import Run, exit_code
from cpmbee_job.spec import StorageSpec
from cpmbee_job.train.elastic import FAILURE_ENV, Failure
from cpmbee_job.train.patience import patiently

MAX_IDLE_STARTS = 20
"""Starts of torchrun without a newer checkpoint after which the run is given up."""
LONGEST_PAUSE = 30.0
"""Seconds between two starts, at most."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cpmbee_job.train", description=__doc__)
    parser.add_argument("run", help="URL of the run's folder")
    parser.add_argument("--processes", type=int, default=1, help="workers on this machine (without PET_* variables)")
    arguments = parser.parse_args()
    try:
        storage = StorageSpec.model_validate_json(os.environ.get(contract.STORAGE_ENV, "{}"))
        run = Run.open(arguments.run, storage)
        sys.exit(Supervisor(run, arguments.processes).supervise())
    except CpmbeeError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


class Supervisor:
    """Runs torchrun until the run has ended, or this container was asked to."""

    def __init__(self, run: Run, processes: int) -> None:
        self.run = run
        self.processes = processes
        self.stopping = False
        self.torchrun: subprocess.Popen[bytes] | None = None
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        lifeline.end_with(lifeline.owner(), self._orphaned)

    def supervise(self) -> int:
        """Returns the container's exit code: the run's own, or 103 after a requested stop."""
        idle_starts, pause, newest = 0, 1.0, self._newest_checkpoint()
        with tempfile.TemporaryDirectory(prefix="cpmbee-") as folder:
            failure_file = Path(folder) / "failure.json"
            while True:
                result = patiently(self.run.result, in_a_hurry=self._is_stopping)
                if result is not None:
                    return exit_code(result)
                failure = Failure.read(failure_file)
                if failure is not None and failure.permanent:
                    return failure.exit_code
                if self.stopping:
                    return CancelledError.exit_code
                if idle_starts:
                    why = failure.reason if failure else "a worker ended without a word (killed?)"
                    sys.stderr.write(f"starting again in {pause:.0f} s: {why}\n")
                    self._sleep(pause)
                if idle_starts == MAX_IDLE_STARTS:
                    reason = failure.reason if failure else "workers end without a word; killed, out of memory?"
                    end = CpmbeeError(f"no progress in {MAX_IDLE_STARTS} starts: {reason}")
                    return exit_code(patiently(partial(self.run.fail, end), in_a_hurry=self._is_stopping))
                failure_file.unlink(missing_ok=True)
                self._torchrun(failure_file)
                step = self._newest_checkpoint()
                idle_starts = 1 if step > newest else idle_starts + 1
                pause = 1.0 if step > newest else min(pause * 2, LONGEST_PAUSE)
                newest = max(step, newest)

    def _torchrun(self, failure_file: Path) -> None:
        command = [sys.executable, "-m", "torch.distributed.run"]
        if "PET_RDZV_ENDPOINT" not in os.environ:
            command += ["--standalone", "--nnodes=1", f"--nproc-per-node={self.processes}", "--max-restarts=0"]
            command += ["--local-addr=127.0.0.1"]  # this machine's name need not resolve
        threads = max(1, len(os.sched_getaffinity(0)) // self.processes)
        environment = {
            # With a shared store a scale-up can split the world, and stale keys stay.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            **lifeline.as_owner(),
            FAILURE_ENV: str(failure_file),
            "TMPDIR": str(failure_file.parent),  # a killed process leaves its scratch files to us
        }
        self.torchrun = subprocess.Popen([*command, "-m", "cpmbee_job.train.worker", self.run.url], env=environment)
        if self.stopping:
            self.torchrun.terminate()
        self.torchrun.wait()
        self.torchrun = None

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        """Ask the workers, not torchrun: it would kill them after 30 s, whatever a step takes. They agree on the step
        to stop at, and torchrun ends with them. A second signal ends torchrun itself."""
        torchrun = self.torchrun
        if torchrun is not None:
            workers = _children(torchrun.pid)
            if self.stopping or not workers:
                torchrun.terminate()
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):  # it may just have ended
                    os.kill(pid, signal.SIGTERM)
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
            pointer = patiently(partial(self.run.store.get, contract.LATEST), in_a_hurry=self._is_stopping)
            return int(json.loads(pointer)["step"])
        except (NotFoundError, ValueError, KeyError, TypeError):
            return 0

    def _is_stopping(self) -> bool:
        return self.stopping


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


if __name__ == "__main__":
    main()
