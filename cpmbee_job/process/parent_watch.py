"""Shut down a process with its parent, even if the parent is killed."""

import os
import select
import threading
from collections.abc import Callable

PARENT_ENV = "CPMBEE_OWNER"
"""Environment variable with the id of the process with which to shut down."""


def parent_environment() -> dict[str, str]:
    """Return environment variables for child processes that must shut down with this process."""
    return {PARENT_ENV: str(os.getpid())}


def parent() -> int | None:
    """Return the id of the process with which this one must shut down, if any."""
    return int(os.environ[PARENT_ENV]) if PARENT_ENV in os.environ else None


def watch(process: int | None, on_exit: Callable[[], None] = lambda: os._exit(1)) -> None:
    """Call `on_exit`, in another thread, when `process` exits; immediately if it has exited already."""
    if process is None or not hasattr(os, "pidfd_open"):  # Linux only
        return
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        on_exit()
        return

    def wait() -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()
        on_exit()

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()
