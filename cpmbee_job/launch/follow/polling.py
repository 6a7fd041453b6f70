"""Poll for an end that is confirmed only after a grace period."""

import time
from collections.abc import Callable, Iterator

INTERVALS = (2.0, 15.0)
"""The first and the longest pause in seconds. Each pause is a quarter longer than the previous one."""
GRACE = 60.0
"""Seconds before a suspicious end state is accepted: a resume also deletes the PyTorchJob, and listings may lag."""


def poll(
    timeout: float | None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> Iterator[float]:
    """Yield the time of each poll, with pauses between them, until `timeout` seconds have passed (None: forever)."""
    began, interval = clock(), INTERVALS[0]
    while True:
        now = clock()
        yield now
        left = float("inf") if timeout is None else began + timeout - now
        if left <= 0:
            return
        pause(min(interval, left))
        interval = min(interval * 1.25, INTERVALS[1])


class GracePeriod:
    """Measures how long a state has been suspicious."""

    def __init__(self) -> None:
        self._since: float | None = None

    def has_passed(self, now: float, *, suspicious: bool) -> bool:
        """Record the state at the time `now`. Return whether it has been suspicious for `GRACE` seconds."""
        if not suspicious:
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None and now - self._since >= GRACE
