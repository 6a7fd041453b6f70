"""The log and the progress line on stderr."""

import logging
import time

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

log = logging.getLogger(__name__)
console = Console(stderr=True, highlight=False, soft_wrap=True)

LOG_INTERVAL = 10.0
"""Seconds between log lines if stderr is not a terminal."""


def log_to_console() -> None:
    """Show this process's log on stderr: this package's from INFO, warnings of others."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_ConsoleHandler()])
    logging.getLogger("cpmbee_job").setLevel(logging.INFO)


class _ConsoleHandler(logging.Handler):
    """Prints log records above the progress line."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record), markup=False)


class ProgressLine:
    """A live progress line; a log line every few seconds if stderr is not a terminal."""

    def __init__(self, total_steps: int, start_step: int) -> None:
        columns = TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}")
        self._live = rich.progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._live.add_task("", total=total_steps, completed=start_step)
        self._live.start()
        self._logged_at = 0.0
        self._total = total_steps

    def step(self, step: int, epoch: int, loss: float, tokens_per_s: float, eta: float) -> None:
        """`eta`: remaining seconds."""
        text = f"epoch {epoch}  loss {loss:.4f}  {tokens_per_s:,.0f} tokens/s  ETA {_duration(eta)}"
        self._live.update(self._task, completed=step, description=text)
        now = time.monotonic()
        if not console.is_terminal and (now - self._logged_at > LOG_INTERVAL or step == self._total):
            self._logged_at = now
            log.info("step %d/%d  %s", step, self._total, text)

    def close(self) -> None:
        self._live.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
