"""The job on this machine: the very commands that a pod runs, prepare then train."""

import os
import signal
import subprocess
import sys
from types import FrameType
from typing import Any

from cpmbee_job import contract
from cpmbee_job.errors import CancelledError, CpmbeeError, JobFailedError
from cpmbee_job.run import Run, exit_code


def run_local(run: Run, processes: int) -> dict[str, Any]:
    """Prepare the data and train with `processes` workers; progress goes to stderr.

    Returns the run's result, also where it has succeeded before. A failed or stopped run goes on from its newest
    checkpoint. Raises the failure that ended the run, `CancelledError` after Ctrl-C or SIGTERM.
    """
    result = run.result()
    if result is not None and result["state"] == "succeeded":
        return result
    run.reopen()
    commands = [
        contract.prepare_command(run.url),
        [*contract.train_command(run.url), f"--processes={processes}"],
    ]
    for command in commands:
        status = _execute(command, {contract.STORAGE_ENV: run.storage.model_dump_json()})
        if status != 0:
            break
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


def _execute(command: list[str], environment: dict[str, str]) -> int:
    """Run a module of ours; a signal to us is a SIGTERM to it, once for every time it comes."""
    process = subprocess.Popen(
        [sys.executable, *command], env={**os.environ, **environment}, start_new_session=True, stdin=subprocess.DEVNULL
    )

    def forward(_number: int, _frame: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return CancelledError.exit_code if status == -signal.SIGTERM else status


def _as_error(status: int, message: str) -> CpmbeeError:
    """The error that ends this command with the exit code of the one that ended the run."""
    error = JobFailedError(message)
    error.exit_code = status if status > 0 else JobFailedError.exit_code  # type: ignore[misc]
    return error
