"""Whether this process makes progress. Any thread records it; the watchdog of a worker reads it."""

from contextvars import ContextVar

_count = 0
_counts: ContextVar[bool] = ContextVar("counts", default=True)


def record() -> None:
    """Record progress that cannot continue forever: bytes moved, a collective or a step, a bounded retry."""
    global _count
    if _counts.get():
        _count += 1


def count() -> int:
    """Return a number that changes whenever progress is recorded."""
    return _count


def ignore_this_thread() -> None:
    """Ignore what this thread records from now on, because it moves bytes even when training stalls."""
    _counts.set(False)
