"""An object store that fails for a while ends no run."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from cpmbee_job.errors import DamagedError, DiskError, StoreError

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 600.0
"""Seconds for which a failing store is tried again."""


def patiently(task: Callable[[], T], in_a_hurry: Callable[[], bool] = lambda: False) -> T:
    """What `task` returns; while the store fails it is tried again, unless `in_a_hurry`."""
    deadline, delay = time.monotonic() + PATIENCE, 1.0
    while True:
        try:
            return task()
        except (DamagedError, DiskError):
            raise
        except StoreError as error:
            again_at = time.monotonic() + delay
            if again_at > deadline:
                raise
            log.warning("the store fails, trying again in %.0f s: %s", delay, error.message)
            while time.monotonic() < again_at:
                if in_a_hurry():
                    raise
                time.sleep(0.1)
            delay = min(delay * 2, 30.0)
