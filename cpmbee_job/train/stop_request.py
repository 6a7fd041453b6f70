"""Stops a run at a step boundary: on a signal, or at its deadline."""

import signal
import time
from types import FrameType


class StopRequest:
    """Set by SIGTERM, by SIGINT, or once `deadline` (seconds since 1970) has passed.

    One rank is enough: `Engine.step` tells all ranks, so that they stop after the same step.
    """

    def __init__(self) -> None:
        self.deadline: float | None = None
        self._signaled = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def is_set(self) -> bool:
        return self._signaled or self.deadline_has_passed()

    def deadline_has_passed(self) -> bool:
        return self.deadline is not None and time.time() > self.deadline

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signaled = True
