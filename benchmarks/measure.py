"""How a benchmark measures, and what it reports: figures, each a ratio against a baseline of the same run."""

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
_SAMPLING = 0.02  # seconds between two looks at the memory of a tree of processes
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Curve:
    """What grows with what: a line of the plots in docs/explanation/performance.md."""

    title: str
    size_label: str
    value_label: str
    points: tuple[tuple[float, float], ...]
    """(size, value), by size."""


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
    """Median seconds of both, timed in turn so that a machine that slows down slows both; `before` comes before each,
    untimed."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for times, function in zip(seconds, (ours, baseline), strict=True):
            gc.collect()
            before()
            times.append(timed(function))
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def rendezvous() -> dict[str, str]:
    """Where processes of this machine can meet: torch's variables, with a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


def settle(num_bytes: int) -> None:
    """Before a measurement: what was written is on the disk, and so much memory is at hand. The host of a virtual
    machine takes back what is free, and to give it again takes it longer than anything is done with it."""
    os.sync()
    np.ones(num_bytes, dtype=np.uint8)


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@contextmanager
def one_core() -> Iterator[None]:
    """This thread, and what it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function of a module returns in a new interpreter."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def own_memory() -> tuple[int, int]:
    """Bytes that this process has resident now, and the most that it ever had."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    now, most = (int(status.partition(name)[2].split()[0]) * 1024 for name in ("VmRSS:", "VmHWM:"))
    return now, most


def run(*arguments: str) -> str:
    """Run `python ARGUMENTS` from the repository's root; returns its output. One that fails ends the benchmarks."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def run_sampled(*arguments: str) -> tuple[float, int]:
    """`run`; returns seconds, and the peak of the summed memory (bytes, resident) of all its processes."""
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
    except OSError:  # it has just ended
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
