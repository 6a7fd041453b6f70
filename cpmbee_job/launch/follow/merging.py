"""Merge the log lines of many threads by time, in bounded memory."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cpmbee_job.errors import ClusterError
from cpmbee_job.launch.follow.log_position import LogLine

QUEUE = 128
"""Maximum number of buffered lines of one thread."""
WINDOW = 0.3
"""Seconds that a line is held back for earlier lines of logs that are being read."""
FIRST_WINDOW = 2.0
"""Seconds that all lines are held back for a log that was just opened, since it may start with old lines."""

Entry = LogLine | str | ClusterError


@dataclass
class LineQueue:
    """The queue of one thread: (time of arrival, line)."""

    lines: deque[tuple[float, LogLine]] = field(default_factory=deque)
    reading: bool = False
    opened: float = 0.0
    had_lines: bool = False


class LineMerger:
    """Merges the lines of all queues. Messages and errors for the reader take precedence."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._news = threading.Condition()
        self._queues: list[LineQueue] = []
        self._messages: deque[str | ClusterError] = deque()
        self._known: set[str] = set()

    def add_queue(self) -> LineQueue:
        queue = LineQueue()
        with self._news:
            self._queues.append(queue)
        return queue

    def put(self, queue: LineQueue, line: LogLine) -> None:
        """Add the line; blocks while the queue is full."""
        with self._news:
            while len(queue.lines) >= QUEUE and not self.stopped.is_set():
                self._news.wait()
            queue.lines.append((time.monotonic(), line))
            queue.had_lines = True
            if len(queue.lines) == 1:
                self._news.notify_all()

    def set_reading(self, queue: LineQueue, reading: bool) -> None:
        """Record whether the log of this queue is being read."""
        with self._news:
            queue.reading, queue.opened = reading, time.monotonic()

    def report(self, message: str | ClusterError) -> None:
        """Pass a message or an error to the reader, once even if many threads report it."""
        with self._news:
            if str(message) not in self._known:
                self._known.add(str(message))
                self._messages.append(message)

    def stop(self) -> None:
        with self._news:
            self.stopped.set()
            self._news.notify_all()

    def entries(self, work: Callable[[], bool]) -> Iterator[Entry]:
        """Yield lines, messages and errors until `work`, which is called between them, returns False."""
        while True:
            more = work()
            with self._news:
                ready: list[Entry] = [*self._messages]
                self._messages.clear()
                while len(ready) < QUEUE and (line := self._next(more)) is not None:
                    ready.append(line)
                if ready:
                    self._news.notify_all()  # there is room again
                elif more:
                    self._news.wait(WINDOW / 3)
                else:
                    return
            yield from ready

    def _next(self, more: bool) -> LogLine | None:
        """Return the earliest line, or None if an earlier one may still arrive."""
        first: LineQueue | None = None
        now, all_have = time.monotonic(), True
        for queue in self._queues:
            if queue.lines:
                if first is None or queue.lines[0][1].time < first.lines[0][1].time:
                    first = queue
            elif queue.reading and more:
                all_have = False
                if not queue.had_lines and now - queue.opened < FIRST_WINDOW:
                    return None
        if first is None or not (all_have or now - first.lines[0][0] >= WINDOW):
            return None
        return first.lines.popleft()[1]
