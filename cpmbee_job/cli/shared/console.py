"""How the command line speaks: results on stdout, words and progress on stderr, plain where there is no terminal."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich import filesize
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
stdout = Console(highlight=False, soft_wrap=True)
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROLS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def say(message: str) -> None:
    """A line for the person who watches."""
    stderr.print(message, markup=False)


def warn(message: str) -> None:
    stderr.print(f"warning: {message}", style="yellow", markup=False)


def error(message: str) -> None:
    stderr.print(f"error: {message}", style="red", markup=False)


def print_json(document: Any) -> None:
    """The one JSON document of a `--json` command."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def printable(text: str) -> str:
    """What a terminal may be given: without escape sequences and control characters, which it would obey; of what was
    written over itself (a progress bar) the last."""
    shown = _ESCAPES.sub("", text).rstrip("\r").rpartition("\r")[2]
    return _CONTROLS.sub("�", shown)


@contextmanager
def byte_progress(title: str, total: int) -> Iterator[Progress]:
    """A bar for bytes that move, with rate and remaining time; its only task has id 0."""
    with _progress(title, total, DownloadColumn(), _RateColumn(lambda rate: f"{filesize.decimal(int(rate))}/s")) as bar:
        yield bar


@contextmanager
def byte_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """The same, as what to call with the number of bytes that have moved; a line where there is no terminal."""
    if not stderr.is_terminal:
        say(f"{title}: {filesize.decimal(total)}")
    with byte_progress(title, total) as bar:
        yield lambda num_bytes: bar.advance(bar.task_ids[0], num_bytes)


@contextmanager
def item_progress(title: str, total: int | None, unit: str) -> Iterator[Progress]:
    """A bar for things that are counted, with rate and remaining time; its only task has id 0."""
    with _progress(title, total, MofNCompleteColumn(), _RateColumn(lambda rate: f"{rate:,.0f} {unit}/s")) as bar:
        yield bar


@contextmanager
def _progress(title: str, total: int | None, count: ProgressColumn, rate: ProgressColumn) -> Iterator[Progress]:
    columns = TextColumn("{task.description}"), BarColumn(), count, rate, _RemainingColumn()
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as progress:
        progress.add_task(title, total=total)
        yield progress


class _RateColumn(ProgressColumn):
    """The mean rate since the start: work that is done in batches comes in bursts, which rich's own would measure."""

    def __init__(self, shown: Callable[[float], str]) -> None:
        super().__init__()
        self._shown = shown

    def render(self, task: Task) -> Text:
        rate = mean_rate(task)
        return Text("" if rate is None else self._shown(rate))


class _RemainingColumn(ProgressColumn):
    """What is left at that rate; once finished, what it took."""

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(_clock(task.finished_time or 0))
        rate = mean_rate(task)
        return Text("" if rate is None or task.remaining is None else f"ETA {_clock(task.remaining / rate)}")


def mean_rate(task: Task) -> float | None:
    """Items or bytes per second since the task began; None before the first."""
    elapsed = task.finished_time if task.finished else task.elapsed
    return task.completed / elapsed if elapsed and task.completed else None


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
