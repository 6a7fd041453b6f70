"""Stopping on SIGTERM, agreed on by all ranks at a step boundary."""

import signal
from types import FrameType


class StopRequest:
    """SIGTERM (or Ctrl-C) as a wish that all ranks agree on at the next step boundary."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
