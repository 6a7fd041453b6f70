"""Processes that end with the one they work for, however that one ends; a kill tells nobody."""

import os
import select
import threading
from collections.abc import Callable

OWNER_ENV = "CPMBEE_OWNER"
"""Environment variable with the id of the process that the one reading it works for."""


def as_owner() -> dict[str, str]:
    """What to add to the environment of processes that shall end with this one."""
    return {OWNER_ENV: str(os.getpid())}


def owner() -> int | None:
    """The process that this one works for, where one has said so."""
    return int(os.environ[OWNER_ENV]) if OWNER_ENV in os.environ else None


def end_with(process: int | None, on_end: Callable[[], None] = lambda: os._exit(1)) -> None:
    """Call `on_end`, from another thread, once `process` has ended; at once where it has already."""
    if process is None or not hasattr(os, "pidfd_open"):  # Linux has it
        return
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        on_end()
        return

    def wait() -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()
        on_end()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
