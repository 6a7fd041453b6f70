"""An object store that fails for a while ends no run."""

import time
from collections.abc import Callable
from typing import TypeVar

from cpmbee_job.errors import DamagedError, StoreError

T = TypeVar("T")

PATIENCE = 600.0
"""Seconds for which a failing store is tried again."""


def patiently(task: Callable[[], T], in_a_hurry: Callable[[], bool] = lambda: False) -> T:
    """What `task` returns; while the store fails it is tried again, unless `in_a_hurry`."""
    deadline, delay = time.monotonic() + PATIENCE, 1.0
    while True:
        try:
            return task()
        except DamagedError:
            raise
        except StoreError:
            again_at = time.monotonic() + delay
            if again_at > deadline:
                raise
            while time.monotonic() < again_at:
                if in_a_hurry():
                    raise
                time.sleep(0.1)
            delay = min(delay * 2, 30.0)
