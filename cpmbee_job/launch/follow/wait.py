"""Waits for the end of a run. Neither the API's nor the store's troubles are the run's, so they never end a wait."""

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
from cpmbee_job.launch.kube.protocol import Cluster
from cpmbee_job.launch.runs.find import FoundRun, open_run
from cpmbee_job.launch.runs.observe import observe
from cpmbee_job.launch.runs.status import RunStatus
from cpmbee_job.run import keys
from cpmbee_job.run.pointers import read_delta_pointer
from cpmbee_job.run.run import Run

INTERVALS = (2.0, 15.0)
"""Seconds between two looks at a run: at first, and most. Each pause is a quarter longer than the one before."""
GRACE = 60.0
"""Seconds until an end that nobody could wish for is believed: a resume deletes the PyTorchJob, too, and a store may
list late."""


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
    """How the run has ended. One that has succeeded has its result and its delta's manifest in the store; one of which
    nothing is left for a minute is returned as failed.

    `on_status` gets every look at it, `on_trouble` the words of a look that was not possible. Raises `UnfinishedError`
    after `timeout` seconds, naming what is in the run's way.
    """
    began, interval = clock(), INTERVALS[0]
    status: RunStatus | None = None
    doubtful_since: float | None = None
    while True:
        now, doubt = clock(), None
        try:
            status = observe(found, cluster)
            on_status(status)
            doubt = _doubt(status, found)
            if status.ended and doubt is None:
                return status
        except PreflightError as error:
            on_trouble(str(error))
        if status is None or doubt is None:
            doubtful_since = None
        else:
            doubtful_since = now if doubtful_since is None else doubtful_since
            if now - doubtful_since >= GRACE:
                end = {"phase": "failed", "ended": True, "exit_code": JobFailedError.exit_code, "reason": doubt}
                return status.model_copy(update=end)
            on_trouble(doubt)
        left = float("inf") if timeout is None else began + timeout - now
        if left <= 0:
            raise _unfinished(found, status, timeout or 0)
        pause(min(interval, left))
        interval = min(interval * 1.25, INTERVALS[1])


def as_error(status: RunStatus) -> CpmbeeError | None:
    """The error that ends a command about an ended run with the run's own exit code; None for a success."""
    code = JobFailedError.exit_code if status.exit_code is None else status.exit_code
    if code == 0:
        return None
    message = f"{status.reference} has {'been cancelled' if status.phase == 'cancelled' else 'failed'}"
    message += f": {status.reason}" if status.reason else ""
    run = status.arguments
    hint = f"`cpmbee-job resume {run}` goes on from its newest checkpoint; `cpmbee-job logs {run}` shows what it said"
    if code == InvalidError.exit_code:
        hint = "mend it and submit again: that is another run"
    return (CancelledError if status.phase == "cancelled" else JobFailedError)(message, hint=hint, exit_code=code)


def _doubt(status: RunStatus, found: FoundRun) -> str | None:
    """Why the end that the look shows may not be one. Raises `StoreError` where the store does not tell."""
    if not status.ended:
        return None
    if status.phase == "lost":
        return status.reason or "nothing is left of it in the cluster, and the store has no result"
    if status.phase != "succeeded":
        return None
    run, problem = (found.run, None) if found.run is not None else open_run(found.url, found.storage)
    if problem is not None:
        raise StoreError(f"it is said to have succeeded, but the store can't be asked: {problem}")
    missing = keys.RESULT if run is None or run.result() is None else _missing_delta(run)
    return None if missing is None else f"it is said to have succeeded, but in {found.url} there is no {missing}"


def _missing_delta(run: Run) -> str | None:
    """The key that the store lacks of what a success leaves."""
    for pointer in (keys.BEST, keys.LAST):
        try:
            manifest = read_delta_pointer(run.store, pointer) + keys.DELTA_MANIFEST
        except NotFoundError:
            return pointer
        except DamagedError:
            return f"{pointer} that names a delta"
        if run.store.info(manifest) is None:
            return manifest
    return None


def _unfinished(found: FoundRun, status: RunStatus | None, timeout: float) -> UnfinishedError:
    problems = () if status is None else status.problems or status.notes
    run = found.reference if status is None else status.arguments
    message = f"{found.reference} has not ended after {timeout:.0f} s"
    message += "" if status is None else f", it is {status.phase}"
    return UnfinishedError(
        ": ".join([message, "; ".join(problems)]) if problems else message,
        hint=f"it goes on; `cpmbee-job wait {run}` waits again, `cpmbee-job cancel {run}` stops it",
    )
