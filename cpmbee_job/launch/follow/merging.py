"""Many threads' log lines as one stream in the order of their times, in bounded memory."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cpmbee_job.errors import ClusterError
from cpmbee_job.launch.follow.logs import LogLine

QUEUE = 128
"""Lines of one source that wait for those of others."""
WINDOW = 0.3
"""Seconds that a line waits for an earlier one of a source that is being read."""
FIRST_WINDOW = 2.0
"""Seconds that all wait for the first line of a log that has just been opened: there may be old ones in it."""

Entry = LogLine | str | ClusterError


@dataclass
class Source:
    """One thread's queue of (arrival, line)."""

    lines: deque[tuple[float, LogLine]] = field(default_factory=deque)
    reading: bool = False
    opened: float = 0.0
    has_spoken: bool = False


class Merged:
    """The lines of all sources; and words and errors for the reader, which go before."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._news = threading.Condition()
        self._sources: list[Source] = []
        self._words: deque[str | ClusterError] = deque()
        self._said: set[str] = set()

    def source(self) -> Source:
        source = Source()
        with self._news:
            self._sources.append(source)
        return source

    def put(self, source: Source, line: LogLine) -> None:
        """Add the line when there is room."""
        with self._news:
            while len(source.lines) >= QUEUE and not self.stopped.is_set():
                self._news.wait()
            source.lines.append((time.monotonic(), line))
            source.has_spoken = True
            if len(source.lines) == 1:
                self._news.notify_all()

    def set_reading(self, source: Source, reading: bool) -> None:
        """Whether the source's next line may be on its way."""
        with self._news:
            source.reading, source.opened = reading, time.monotonic()

    def say(self, words: str | ClusterError) -> None:
        """Once, whatever number of threads meets the same."""
        with self._news:
            if str(words) not in self._said:
                self._said.add(str(words))
                self._words.append(words)

    def stop(self) -> None:
        with self._news:
            self.stopped.set()
            self._news.notify_all()

    def entries(self, work: Callable[[], bool]) -> Iterator[Entry]:
        """Until `work`, which is called now and then, says that nothing comes any more."""
        while True:
            going_on = work()
            with self._news:
                ready: list[Entry] = [*self._words]
                self._words.clear()
                while len(ready) < QUEUE and (line := self._next(going_on)) is not None:
                    ready.append(line)
                if ready:
                    self._news.notify_all()  # there is room again
                elif going_on:
                    self._news.wait(WINDOW / 3)
                else:
                    return
            yield from ready

    def _next(self, going_on: bool) -> LogLine | None:
        """The earliest line, unless an earlier one may come in a moment."""
        first: Source | None = None
        now, all_have = time.monotonic(), True
        for source in self._sources:
            if source.lines:
                if first is None or source.lines[0][1].time < first.lines[0][1].time:
                    first = source
            elif source.reading and going_on:
                all_have = False
                if not source.has_spoken and now - source.opened < FIRST_WINDOW:
                    return None
        if first is None or not (all_have or now - first.lines[0][0] >= WINDOW):
            return None
        return first.lines.popleft()[1]
