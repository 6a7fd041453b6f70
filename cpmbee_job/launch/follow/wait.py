"""Wait for the end of a run. Failures of the API or the store are not the run's, so they never end a wait."""

import time
from collections.abc import Callable

from cpmbee_job.errors import (
    CancelledError,
    CpmbeeError,
    DamagedError,
    InvalidError,
    JobFailedError,
    NotFoundError,
    PreflightError,
    StoreError,
    UnfinishedError,
)
from cpmbee_job.launch.follow.polling import GracePeriod, poll
from cpmbee_job.launch.kube.protocol import Cluster
from cpmbee_job.launch.runs.find import FoundRun, open_run
from cpmbee_job.launch.runs.observe import observe
from cpmbee_job.launch.runs.status import RunStatus
from cpmbee_job.run import keys
from cpmbee_job.run.deltas import read_delta_pointer
from cpmbee_job.run.run import Run


def wait_for_end(
    found: FoundRun,
    cluster: Cluster | None,
    *,
    on_status: Callable[[RunStatus], None],
    on_trouble: Callable[[str], None],
    timeout: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> RunStatus:
    """Return the final status of the run. A successful run has its result and its deltas in the store; a run that
    vanished without a result for one minute counts as failed.

    `on_status` gets each observed status, `on_trouble` why an observation failed or is suspicious. Raises
    `UnfinishedError` after `timeout` seconds, with the problems of the run.
    """
    status: RunStatus | None = None
    grace = GracePeriod()
    for now in poll(timeout, clock, pause):
        doubt = None
        try:
            status = observe(found, cluster)
            on_status(status)
            doubt = _doubt(status, found)
            if status.ended and doubt is None:
                return status
        except PreflightError as error:
            on_trouble(str(error))
        if grace.has_passed(now, suspicious=doubt is not None) and status is not None:
            end = {"phase": "failed", "ended": True, "exit_code": JobFailedError.exit_code, "reason": doubt}
            return status.model_copy(update=end)
        if doubt is not None:
            on_trouble(doubt)
    raise _unfinished(found, status, timeout or 0)


def as_error(status: RunStatus) -> CpmbeeError | None:
    """Return the error for an ended run, with the run's exit code; None if it succeeded."""
    code = JobFailedError.exit_code if status.exit_code is None else status.exit_code
    if code == 0:
        return None
    message = f"{status.reference} {'was cancelled' if status.phase == 'cancelled' else 'failed'}"
    message += f": {status.reason}" if status.reason else ""
    run = status.arguments
    hint = f"`cpmbee-job resume {run}` resumes it from its newest checkpoint; `cpmbee-job logs {run}` shows its logs"
    if code == InvalidError.exit_code:
        hint = "fix it and submit again, which starts another run"
    return (CancelledError if status.phase == "cancelled" else JobFailedError)(message, hint=hint, exit_code=code)


def _doubt(status: RunStatus, found: FoundRun) -> str | None:
    """Return why the observed end is suspicious. Raises `StoreError` if the store cannot confirm it."""
    if not status.ended:
        return None
    if status.phase == "lost":
        return status.reason or "gone from the cluster, without a result in the store"
    if status.phase != "succeeded":
        return None
    run, problem = (found.run, None) if found.run is not None else open_run(found.url, found.storage)
    if problem is not None:
        raise StoreError(f"reported as succeeded, but the store cannot confirm it: {problem}")
    missing = keys.RESULT if run is None or run.result() is None else missing_delta(run)
    return None if missing is None else f"reported as succeeded, but {found.url} has no {missing}"


def missing_delta(run: Run) -> str | None:
    """Return the missing or corrupt object of a successful run, None if it is complete."""
    for pointer in (keys.BEST, keys.LAST):
        try:
            manifest = read_delta_pointer(run.store, pointer) + keys.DELTA_MANIFEST
        except NotFoundError:
            return pointer
        except DamagedError:
            return f"intact {pointer}"
        if run.store.info(manifest) is None:
            return manifest
    return None


def _unfinished(found: FoundRun, status: RunStatus | None, timeout: float) -> UnfinishedError:
    problems = () if status is None else status.problems or status.notes
    run = found.reference if status is None else status.arguments
    message = f"{found.reference} did not end within {timeout:.0f} s"
    message += "" if status is None else f" ({status.phase})"
    return UnfinishedError(
        ": ".join([message, "; ".join(problems)]) if problems else message,
        hint=f"it continues; `cpmbee-job wait {run}` waits again, `cpmbee-job cancel {run}` cancels it",
    )
