"""Workers that the kernel kills for memory: to torchrun and to Kubernetes they end by signal 9, like any other."""

import time
from collections.abc import Callable

from cpmbee_job.process import pod

ONE_END = 10.0
"""Seconds within which several kills belong to the same end of the world."""


class MemoryWatch:
    """Counts the ends of the world by kills in this container, until a newer checkpoint shows that there is progress.

    The control group's counter is the witness; what is killed elsewhere, that pod's own entrypoint counts.
    """

    def __init__(self, newest_checkpoint: Callable[[], int]) -> None:
        self.reason: str | None = None
        """In words, once it has happened since `begin`."""
        self.ends = 0
        self._newest_checkpoint = newest_checkpoint
        self._kills = pod.oom_kills()
        self._step = -1
        self._counted_at = float("-inf")

    def begin(self) -> None:
        """A new world is started."""
        self.reason = None
        self._counted_at = float("-inf")

    def look(self) -> None:
        """Count what has happened since the last look."""
        kills, before = pod.oom_kills(), self._kills
        self._kills = kills
        if kills <= before or time.monotonic() - self._counted_at < ONE_END:
            return
        self._counted_at = time.monotonic()
        limit = pod.memory_limit()
        self.reason = "out of memory: a worker was killed by the kernel"
        if limit is not None:
            self.reason += f"; the container's limit is {limit / 2**30:.1f} GiB (workers.memory)"
        step = self._newest_checkpoint()
        self.ends = self.ends + 1 if step == self._step else 1
        self._step = step
