"""Print to the terminal: results on stdout, messages and progress on stderr, plain text where there is no terminal."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """Print a message for the user on stderr."""
    stderr.print(message, markup=False)


def warn(message: str) -> None:
    stderr.print(f"warning: {message}", style="yellow", markup=False)


def warn_of_counts(warnings: Mapping[str, int]) -> None:
    """Print one warning for each kind, with the number of records."""
    for kind, count in sorted(warnings.items()):
        warn(f"{kind}: {count:,}")


def error(message: str) -> None:
    stderr.print(f"error: {message}", style="red", markup=False)


def print_json(document: Any) -> None:
    """Print the one JSON document of a `--json` command."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def print_lines(lines: Sequence[Text]) -> None:
    """Print the result of a command, line by line."""
    for line in lines:
        stdout.print(line)


def columns(rows: Sequence[Sequence[str]], styles: Mapping[str, str] | None = None) -> list[Text]:
    """Align `rows` in columns, never truncated or wrapped. `styles`: the style of cells with exactly this text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        line = Text()
        for cell, width in zip(row, widths, strict=True):
            line.append(f"{cell:{width}}  " if width else "", (styles or {}).get(cell, ""))
        line.rstrip()
        lines.append(line)
    return lines


def printable(text: str) -> str:
    """Make text of unknown origin safe for a terminal: remove escape sequences and control characters.

    Of a line that overwrites itself (a progress bar), the last state is kept.
    """
    shown = _ESCAPES.sub("", text).rstrip("\r").rpartition("\r")[2]
    return _CONTROLS.sub("�", shown)


@contextmanager
def byte_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Like `byte_progress`; without a terminal it prints a line."""
    if not stderr.is_terminal:
        say(f"{title}: {filesize.decimal(total)}")
    with byte_progress(title, total) as advance:
        yield advance


@contextmanager
def byte_progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar for bytes, with rate and remaining time. Yields the function to call with the bytes moved."""
    rate = _RateColumn(lambda rate: f"{filesize.decimal(int(rate))}/s")
    with _progress(title, total, DownloadColumn(), rate) as advance:
        yield advance


@contextmanager
def item_progress(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a bar for counted items, with rate and remaining time. Yields the function to call with the items done."""
    rate = _RateColumn(lambda rate: f"{rate:,.0f} {unit}/s")
    with _progress(title, total, MofNCompleteColumn(), rate) as advance:
        yield advance


@contextmanager
def _progress(title: str, total: int, count: ProgressColumn, rate: ProgressColumn) -> Iterator[Callable[[int], None]]:
    shown = TextColumn("{task.description}"), BarColumn(), count, rate, _RemainingColumn()
    with Progress(*shown, console=stderr, disable=not stderr.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda number: progress.advance(task, number)


class _RateColumn(ProgressColumn):
    """The mean rate since the start. Rich's own rate is misleading for work that completes in batches."""

    def __init__(self, shown: Callable[[float], str]) -> None:
        super().__init__()
        self._shown = shown

    def render(self, task: Task) -> Text:
        rate = mean_rate(task)
        return Text("" if rate is None else self._shown(rate))


class _RemainingColumn(ProgressColumn):
    """The remaining time at the mean rate; the elapsed time once finished."""

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(_clock(task.finished_time or 0))
        rate = mean_rate(task)
        return Text("" if rate is None or task.remaining is None else f"ETA {_clock(task.remaining / rate)}")


def mean_rate(task: Task) -> float | None:
    """Items or bytes per second since the task started; None before the first."""
    elapsed = task.finished_time if task.finished else task.elapsed
    return task.completed / elapsed if elapsed and task.completed else None


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
