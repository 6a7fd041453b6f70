"""An object store that fails for a while ends no run."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from cpmbee_job.errors import DamagedError, DiskError, StoreError
from cpmbee_job.process import activity

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 600.0
"""Seconds for which a failing store is tried again."""


def patiently(
    task: Callable[[], T],
    in_a_hurry: Callable[[], bool] = lambda: False,
    hopeless: tuple[type[StoreError], ...] = (DamagedError, DiskError),
) -> T:
    """What `task` returns; while the store fails, other than by an error that is `hopeless`, it is tried again, unless
    `in_a_hurry`. A task that went on for longer than our patience before it failed has not met the same outage."""
    deadline, delay = None, 1.0
    while True:
        begun_at = time.monotonic()
        try:
            return task()
        except hopeless:
            raise
        except StoreError as error:
            failed_at = time.monotonic()
            if deadline is None or failed_at - begun_at > PATIENCE:
                deadline, delay = failed_at + PATIENCE, 1.0
            if failed_at + delay > deadline:
                raise
            log.warning("the store fails, trying again in %.0f s: %s", delay, error.message)
            while time.monotonic() < failed_at + delay:
                if in_a_hurry():
                    raise
                activity.moved()  # it won't wait for ever
                time.sleep(0.1)
            delay = min(delay * 2, 30.0)
