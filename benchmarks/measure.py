"""Measure, and report figures: each is a ratio to a baseline of the same run."""

import gc
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

Result = TypeVar("Result")

ROOT = Path(__file__).parents[1]
_SAMPLING = 0.02  # seconds between two samples of the memory of a process tree
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Curve:
    """A line of a scaling plot in docs/explanation/performance.md."""

    title: str
    size_label: str
    value_label: str
    points: tuple[tuple[float, float], ...]
    """(size, value), by size."""


@dataclass(frozen=True)
class Figure:
    """A row of the table."""

    what: str
    ours: str
    """With its unit, `5.1 M characters/s`."""
    baseline: str
    """The same with a description: `0.3 M characters/s, greedy loop in Python`."""
    ratio: float
    """The ratio of the two, in the direction of `mark`."""
    mark: float | None = None
    """Target of the ratio; None for information only."""
    bound: Literal["at least", "at most"] = "at least"
    curve: Curve | None = None

    @property
    def reached(self) -> bool | None:
        if self.mark is None:
            return None
        return self.ratio >= self.mark if self.bound == "at least" else self.ratio <= self.mark


def paired(
    ours: Callable[[], object],
    baseline: Callable[[], object],
    repeats: int,
    before: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """Return the median seconds of both. They alternate, so that a slower machine slows both; `before` runs before
    each, untimed."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for times, function in zip(seconds, (ours, baseline), strict=True):
            gc.collect()
            before()
            times.append(timed(function))
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def rendezvous() -> dict[str, str]:
    """Return torch's rendezvous variables for processes of this machine, with a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


def settle(num_bytes: int) -> None:
    """Flush writes to disk and make memory available before a measurement. The host of a virtual machine reclaims free
    memory, and getting it back takes longer than using it."""
    os.sync()
    np.ones(num_bytes, dtype=np.uint8)


def timed(function: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@contextmanager
def one_core() -> Iterator[None]:
    """Run this thread, and processes that it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function of a module in a new interpreter, and return its result."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def own_memory() -> tuple[int, int]:
    """Return the resident bytes of this process: current and peak."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    now, most = (int(status.partition(name)[2].split()[0]) * 1024 for name in ("VmRSS:", "VmHWM:"))
    return now, most


def run(*arguments: str) -> str:
    """Run `python ARGUMENTS` in the repository's root, and return its output. A failure ends the benchmarks."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def run_sampled(*arguments: str) -> tuple[float, int]:
    """Like `run`; return seconds, and the peak of the summed resident bytes of all its processes."""
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=output, stderr=output)
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(_resident, _tree(process.pid))))
            time.sleep(_SAMPLING)
        seconds = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            raise subprocess.CalledProcessError(process.returncode, arguments, output.read())
    return seconds, peak


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has just exited
        return
    for child in (child for some in children for child in some):
        yield from _tree(int(child))


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0


def rate(amount: float, seconds: float, unit: str) -> str:
    """`5.12 M characters/s`."""
    per_second = amount / seconds
    return f"{per_second / 1e6:.2f} M {unit}/s" if per_second >= 1e5 else f"{per_second:,.0f} {unit}/s"


def duration(seconds: float) -> str:
    """`3.42 s`, `0.48 ms`."""
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"
