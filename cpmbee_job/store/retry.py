"""Retry with backoff, so that a temporary outage of the object store does not end a run."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from cpmbee_job.errors import DamagedError, DiskError, StoreError
from cpmbee_job.process import activity

log = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_OUTAGE = 600.0
"""Seconds after which a failing store is not retried any more."""


def with_retries(
    task: Callable[[], T],
    should_stop: Callable[[], bool] = lambda: False,
    permanent: tuple[type[StoreError], ...] = (DamagedError, DiskError),
) -> T:
    """Return the result of `task`. Retry it on a `StoreError` that is not `permanent`, until `should_stop` returns true
    or the outage lasts too long. A task that ran longer than that before it failed has met a new outage."""
    deadline, delay = None, 1.0
    while True:
        started_at = time.monotonic()
        try:
            return task()
        except permanent:
            raise
        except StoreError as error:
            failed_at = time.monotonic()
            if deadline is None or failed_at - started_at > LONGEST_OUTAGE:
                deadline, delay = failed_at + LONGEST_OUTAGE, 1.0
            if failed_at + delay > deadline:
                raise
            log.warning("the store failed, retrying in %.0f s: %s", delay, error.message)
            while time.monotonic() < failed_at + delay:
                if should_stop():
                    raise
                activity.record()  # the wait is bounded
                time.sleep(0.1)
            delay = min(delay * 2, 30.0)
