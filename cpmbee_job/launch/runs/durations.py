"""Ages in seconds, and durations as people read them."""

from datetime import datetime


def age(at: datetime | None, now: datetime) -> float | None:
    """Seconds from `at` to `now`, at least 0; None if `at` is None."""
    return None if at is None else max((now - at).total_seconds(), 0.0)


def duration(seconds: float) -> str:
    """Format a duration like `40 s`, `12 min`, `3 h 20 min` or `5 d`."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{round(seconds)} s"
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} d"
