"""Print to the terminal: results on stdout, messages and progress on stderr, plain text where there is no terminal."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


def warn(*messages: str) -> None:
    for message in messages:
        stderr.print(f"warning: {message}", style="yellow", markup=False)


def warn_of_counts(warnings: Mapping[str, int]) -> None:
    """Print one warning for each kind, with the number of records."""
    warn(*(f"{kind}: {count:,}" for kind, count in sorted(warnings.items())))


def error(message: str) -> None:
    stderr.print(f"error: {message}", style="red", markup=False)


def print_json(document: Any) -> None:
    """Print the one JSON document of a `--json` command."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def print_result(document: Any, lines: Iterable[str | Text], *, as_json: bool) -> None:
    """Print the result of a command: the document as JSON, or the lines. Text is never markup."""
    if as_json:
        print_json(document)
    else:
        for line in lines:
            stdout.print(Text(line) if isinstance(line, str) else line)


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
    """Like `progress`; without a terminal it prints a line."""
    if not stderr.is_terminal:
        say(f"{title}: {filesize.decimal(total)}")
    with progress(title, total) as advance:
        yield advance


@contextmanager
def progress(title: str, total: int, unit: str | None = None) -> Iterator[Callable[[int], None]]:
    """Show a bar with rate and remaining time. Yields the function to call with the bytes, or `unit`s, just done."""
    count = DownloadColumn() if unit is None else MofNCompleteColumn()
    shown = TextColumn("{task.description}"), BarColumn(), count, _RateColumn(unit)
    with Progress(*shown, console=stderr, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda number: bar.advance(task, number)


class _RateColumn(ProgressColumn):
    """The mean rate since the start, and the remaining time at this rate; the elapsed time once finished.

    Rich's own rate is misleading for work that completes in batches.
    """

    def __init__(self, unit: str | None) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        rate = mean_rate(task)
        if rate is None:
            return Text()
        shown = f"{filesize.decimal(int(rate))}/s" if self._unit is None else f"{rate:,.0f} {self._unit}/s"
        seconds = task.finished_time if task.finished else (task.remaining or 0) / rate
        return Text(f"{shown} {'' if task.finished else 'ETA '}{timedelta(seconds=round(seconds or 0))}")


def mean_rate(task: Task) -> float | None:
    """Items or bytes per second since the task started; None before the first."""
    elapsed = task.finished_time if task.finished else task.elapsed
    return task.completed / elapsed if elapsed and task.completed else None
