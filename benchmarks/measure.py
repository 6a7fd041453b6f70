"""How a benchmark measures, and what it reports: figures, each a ratio against a baseline of the same run."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    what: str
    ours: str
    """With its unit, `5.1 M characters/s`."""
    baseline: str
    """Likewise, and what it is: `0.3 M characters/s, greedy loop in Python`."""
    ratio: float
    """Of the two, the way round in which `mark` is written."""
    mark: float | None = None
    """What the ratio is to reach; None where there is only something to know."""
    bound: Literal["at least", "at most"] = "at least"

    @property
    def reached(self) -> bool | None:
        if self.mark is None:
            return None
        return self.ratio >= self.mark if self.bound == "at least" else self.ratio <= self.mark


def paired(ours: Callable[[], object], baseline: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of both, timed in turn so that a machine that slows down slows both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for times, function in zip(seconds, (ours, baseline), strict=True):
            gc.collect()
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])
