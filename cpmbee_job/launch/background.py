"""Run a task beside the main thread."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def begin(task: Callable[[], T]) -> "Future[T]":
    """Start the task in a daemon thread. An executor's threads would block the exit of the process if they hang."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(task())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()
    return outcome
