"""Run a job on this machine, with the same commands as in a pod: prepare, then train."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cpmbee_job.errors import CancelledError, JobFailedError
from cpmbee_job.process import contract, parent_watch
from cpmbee_job.run.run import Run, exit_code, may_resume


def run_local(run: Run, processes: int) -> dict[str, Any]:
    """Prepare the data and train with `processes` workers. Progress goes to stderr.

    Returns the run's result, also if it succeeded earlier. A failed or interrupted run resumes from its newest
    checkpoint. Raises `JobFailedError` with the exit code of the failure, `CancelledError` after Ctrl-C, SIGTERM or
    SIGHUP.
    """
    result = run.result()
    if result is not None and not may_resume(result["state"]):
        return result
    environment = {contract.STORAGE_ENV: run.storage.model_dump_json()}
    with _forwarded_signals() as modules:
        run.reopen()
        status = modules.execute(contract.prepare_command(run.url), environment)
        if status == 0:
            train = [*contract.train_command(run.url), f"--processes={processes}"]
            status = modules.execute(train, environment)
    result = run.result()
    if result is None and status == CancelledError.exit_code:
        raise CancelledError(f"{run.url}: stopped", hint="repeat the command with this run's --run-id to resume it")
    if result is None:
        raise JobFailedError(
            f"{run.url}: ended without a result; see its output above", exit_code=status if status > 0 else None
        )
    if result["state"] != "succeeded":
        raise JobFailedError(str(result["reason"]), exit_code=exit_code(result))
    return result


class _Modules:
    """Executes our modules one after another until it is stopped. They end when this process ends."""

    def __init__(self) -> None:
        self.stopping = False
        self._process: subprocess.Popen[bytes] | None = None

    def execute(self, command: list[str], environment: dict[str, str]) -> int:
        """Return the exit status of the module; 103 if it was stopped, before or after its start."""
        if self.stopping:
            return CancelledError.exit_code
        self._process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **environment, **parent_watch.parent_environment()},
            start_new_session=True,  # so that the terminal's Ctrl-C reaches only this process
            stdin=subprocess.DEVNULL,
        )
        if self.stopping:  # the signal arrived during the start
            self._process.terminate()
        status = self._process.wait()
        return CancelledError.exit_code if status == -signal.SIGTERM else status

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        """Send SIGTERM to the current module for each signal that arrives."""
        self.stopping = True
        if self._process is not None:
            self._process.terminate()


@contextmanager
def _forwarded_signals() -> Iterator[_Modules]:
    """Forward SIGINT, SIGTERM and SIGHUP to the processes, except signals that are ignored (SIGHUP under nohup)."""
    processes = _Modules()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.signal(n, processes.stop) for n in signals if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield processes
    finally:
        if not processes.stopping:  # after a stop, a second signal must not end this process before it reports
            for number, handler in before.items():
                signal.signal(number, handler)
