"""The lines of a container's log, and how far it has been read."""

import re
from collections import Counter, deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

REMEMBERED = 4096
"""Number of recent lines of a log that are remembered to drop duplicates."""


@dataclass(frozen=True)
class LogLine:
    time: str
    """RFC 3339 in UTC with nine digits, so that times sort as text; "" before the first known time."""
    pod: str
    container: str
    text: str


class LogPosition:
    """How far a container's log has been read, to continue there after a stream has ended.

    Servers start at a whole second, and the lines of stdout and stderr may be out of order. So a new stream starts a
    little earlier, and duplicates are dropped.
    """

    def __init__(self, since: str | None) -> None:
        self._since = since
        self._recent: deque[tuple[str, int]] = deque(maxlen=REMEMBERED)
        self._again: Counter[tuple[str, int]] = Counter()
        self._time = since or ""
        self._notice = ""

    def resume(self) -> str | None:
        """Return the time at which the next stream should start. It may repeat lines."""
        self._again = Counter(self._recent)
        if not self._recent:
            return self._since
        last = datetime.fromisoformat(self._recent[-1][0][:19]).replace(tzinfo=UTC) - timedelta(seconds=1)
        return last.strftime("%Y-%m-%dT%H:%M:%SZ")

    def take(self, pod: str, container: str, stamp: str, content: str) -> LogLine | None:
        """Return the line if it is new. A line without a time is a message of the kubelet, returned once."""
        time = utc(stamp)
        if time is None:
            content = f"{stamp} {content}".strip()
            known, self._notice = self._notice == content, content
            return None if known else LogLine(self._time, pod, container, content)
        if self._since is not None and time < self._since:
            return None
        mark = (time, hash(content))
        if self._again:
            if self._again[mark] > 0:
                self._again[mark] -= 1
                return None
            if len(self._recent) == REMEMBERED and time < self._recent[0][0]:
                return None
        self._recent.append(mark)
        self._time = time
        return LogLine(time, pod, container, content)


def utc(stamp: str) -> str | None:
    """Convert an RFC 3339 time to that of `LogLine`; None for other text. Nodes use their own time zone."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", stamp)
    if match is None:
        return None
    seconds, fraction, zone = match.groups()
    if zone != "Z":
        seconds = datetime.fromisoformat(seconds + zone).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{seconds}.{fraction or '':0<9}Z"
