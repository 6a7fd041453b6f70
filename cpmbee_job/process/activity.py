"""Whether this process gets on. What moves says so here, in any thread; the watchdog of a worker looks."""

from contextvars import ContextVar

_moves = 0
_counts: ContextVar[bool] = ContextVar("counts", default=True)


def moved() -> None:
    """Something has got on that would not for ever: bytes came, a collective or a step is done, a try has failed that
    is repeated for so long and no longer."""
    global _moves
    if _counts.get():
        _moves += 1


def moves() -> int:
    """Another number whenever something has moved since."""
    return _moves


def be_a_heartbeat() -> None:
    """What this thread does from now on is done whether the process gets on or not."""
    _counts.set(False)
