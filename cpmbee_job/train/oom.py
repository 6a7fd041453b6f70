"""Detects workers that the kernel has killed for memory; torchrun only sees signal 9."""

import time
from collections.abc import Callable

from cpmbee_job.process import pod

SAME_OOM_SECONDS = 10.0
"""Kills within this time count as one: several workers of the same start."""


class OomWatch:
    """Counts the starts of torchrun that ended with an out-of-memory kill since the last newer checkpoint.

    Reads the counter of this container's control group. Kills in other pods are counted by their own entrypoints.
    """

    def __init__(self, newest_checkpoint: Callable[[], int]) -> None:
        self.reason: str | None = None
        """Message for the last kill since `begin`."""
        self.count = 0
        self._newest_checkpoint = newest_checkpoint
        self._kills = pod.oom_kills()
        self._step = -1
        self._counted_at = float("-inf")

    def begin(self) -> None:
        """Reset `reason`: torchrun starts."""
        self.reason = None
        self._counted_at = float("-inf")

    def poll(self) -> None:
        """Count kills since the last call."""
        kills, before = pod.oom_kills(), self._kills
        self._kills = kills
        if kills <= before or time.monotonic() - self._counted_at < SAME_OOM_SECONDS:
            return
        self._counted_at = time.monotonic()
        limit = pod.memory_limit()
        self.reason = "out of memory: a worker was killed by the kernel"
        if limit is not None:
            self.reason += f"; the container's limit is {limit / 2**30:.1f} GiB (workers.memory)"
        step = self._newest_checkpoint()
        self.count = self.count + 1 if step == self._step else 1
        self._step = step
