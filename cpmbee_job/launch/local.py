"""The job on this machine: the very commands that a pod runs, prepare then train."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cpmbee_job.errors import CancelledError, CpmbeeError, JobFailedError
from cpmbee_job.process import contract, parent_watch
from cpmbee_job.run.resumable import may_resume
from cpmbee_job.run.run import Run, exit_code


def run_local(run: Run, processes: int) -> dict[str, Any]:
    """Prepare the data and train with `processes` workers; progress goes to stderr.

    Returns the run's result, also where it has succeeded before. A failed or stopped run goes on from its newest
    checkpoint. Raises the failure that ended the run, `CancelledError` after Ctrl-C, SIGTERM or a hangup.
    """
    result = run.result()
    if result is not None and not may_resume(result["state"]):
        return result
    environment = {contract.STORAGE_ENV: run.storage.model_dump_json()}
    with _stoppable() as children:
        run.reopen()
        status = children.execute(contract.prepare_command(run.url), environment)
        if status == 0:
            status = children.execute([*contract.train_command(run.url), f"--processes={processes}"], environment)
    result = run.result()
    if result is None:
        if status == CancelledError.exit_code:
            raise CancelledError(
                f"{run.url}: stopped", hint="the same command with this run's --run-id goes on from here"
            )
        raise _as_error(status, f"{run.url}: ended without a result; its output says why")
    if result["state"] != "succeeded":
        raise _as_error(exit_code(result), str(result["reason"]))
    return result


class _Children:
    """Runs modules of ours one after the other, until it is told to stop; they end with this process."""

    def __init__(self) -> None:
        self.stopping = False
        self._process: subprocess.Popen[bytes] | None = None

    def execute(self, command: list[str], environment: dict[str, str]) -> int:
        """The module's exit status; 103 where it was stopped, or not begun any more."""
        if self.stopping:
            return CancelledError.exit_code
        self._process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **environment, **parent_watch.parent_environment()},
            start_new_session=True,  # Ctrl-C is ours to pass on
            stdin=subprocess.DEVNULL,
        )
        if self.stopping:  # the signal came in between
            self._process.terminate()
        status = self._process.wait()
        return CancelledError.exit_code if status == -signal.SIGTERM else status

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        """A signal to us is a SIGTERM to the module, once for every time it comes."""
        self.stopping = True
        if self._process is not None:
            self._process.terminate()


@contextmanager
def _stoppable() -> Iterator[_Children]:
    """Children to whom signals go; one that is ignored (SIGHUP under nohup) stays so."""
    children = _Children()
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.signal(n, children.stop) for n in wanted if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield children
    finally:
        if not children.stopping:  # a stop that comes twice must not hit us in between
            for number, handler in before.items():
                signal.signal(number, handler)


def _as_error(status: int, message: str) -> CpmbeeError:
    """The error that ends this command with the exit code of the one that ended the run."""
    return JobFailedError(message, exit_code=status if status > 0 else None)
