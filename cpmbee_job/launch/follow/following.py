"""Follows the logs of a run's pods as they are written: one thread for a pod, one for the news of pods. The lines meet
in queues of fixed length, so memory does not grow with what is written."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from cpmbee_job.errors import ClusterError, NotFoundError, UnreachableError
from cpmbee_job.launch.follow.logs import HIDDEN, Choice, LogLine, Position, read_logs, utc
from cpmbee_job.launch.follow.merging import Merged, Source
from cpmbee_job.launch.kube.fields import integer, name_of, part, parts, text
from cpmbee_job.launch.kube.protocol import PODS, Cluster, Object
from cpmbee_job.launch.runs.find import FoundRun
from cpmbee_job.launch.runs.pods import index_of

PAUSE = 1.0
"""Seconds between two tries to read a log that broke off, and most between two looks at what the watch has told."""
END_GRACE = 30.0
"""Seconds that pods have for their last words after the run has ended."""


def follow_logs(
    found: FoundRun,
    cluster: Cluster,
    choice: Choice,
    *,
    ended: Callable[[], bool],
    on_words: Callable[[str], None],
    pause: float = PAUSE,
) -> Iterator[LogLine]:
    """What the pods say, from the beginning (or `choice.since`) until the run has `ended` and all is said.

    Pods are waited for; restarted containers and replaced pods are read on, no line lost or told twice as far as
    kubelet still has it. `on_words` learns of refusals of the API, which are waited out, and of what is not shown.
    Raises `ClusterError` where the API refuses from the first, `NotFoundError` where nothing has been said at the end.
    """
    merged = Merged()
    follower = _Follower(found, cluster, choice, merged, ended, pause)
    shown = False
    try:
        for entry in merged.entries(follower.work):
            if isinstance(entry, LogLine):
                shown = True
                yield entry
            elif isinstance(entry, str) or shown:
                on_words(str(entry))
            else:
                raise entry
    finally:
        merged.stop()
    if not shown:  # it had ended before, or its pods are gone
        yield from read_logs(found, cluster, choice, on_words)


class _Follower:
    """Knows the pods, and starts a thread for each that is wanted."""

    def __init__(
        self,
        found: FoundRun,
        cluster: Cluster,
        choice: Choice,
        merged: Merged,
        ended: Callable[[], bool],
        pause: float,
    ) -> None:
        self.cluster, self.choice, self.merged, self.pause = cluster, choice, merged, pause
        self._labels = found.labels
        self._ended = ended
        self._ended_at: float | None = None
        self._pods: dict[str, Object] = {}
        self._new: deque[Object] = deque()
        self._tails: dict[str, threading.Thread] = {}
        threading.Thread(target=self._watch, name="pods", daemon=True).start()

    def work(self) -> bool:
        """Start what is to be started; whether lines may still come."""
        while self._new:
            pod = self._new.popleft()
            name = name_of(pod)
            if not self.choice.wants(name, index_of(pod)):
                if self.choice.pod is None:
                    self.merged.say(HIDDEN)
            elif name not in self._tails:
                tail = _Tail(name, self)
                self._tails[name] = threading.Thread(target=tail.run, name=name, daemon=True)
                self._tails[name].start()
        if self._ended_at is None and self._ended():
            self._ended_at = time.monotonic()
        if self._ended_at is None:
            return True
        late = time.monotonic() - self._ended_at > END_GRACE
        return not late and any(thread.is_alive() for thread in self._tails.values())

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, or nobody reads any more."""
        return self._ended_at is not None or self.merged.stopped.is_set()

    def pod(self, name: str) -> Object | None:
        """The pod of that name as the watch has told."""
        return self._pods.get(name)

    def _watch(self) -> None:
        while not self.merged.stopped.is_set():
            try:
                for news in self.cluster.watch(PODS, self._labels):
                    if self.merged.stopped.is_set():
                        return
                    if news is not None:
                        self._learn(*news)
            except ClusterError as error:
                self.merged.say(error)
            self.merged.stopped.wait(self.pause)

    def _learn(self, change: str, pod: Object) -> None:
        name = name_of(pod)
        known = self._pods.get(name)
        if change != "DELETED":
            self._pods[name] = pod
            if known is None:
                self._new.append(pod)
        elif known is not None and _uid(known) == _uid(pod):
            del self._pods[name]


class _Tail:
    """Reads the log of one pod name, whichever pod bears it."""

    def __init__(self, name: str, follower: _Follower) -> None:
        self._name = name
        self._follower = follower
        self._merged = follower.merged
        self._source: Source = follower.merged.source()

    def run(self) -> None:
        read = ""
        while True:
            over = self._follower.is_over
            pod = self._follower.pod(self._name)
            if pod is not None and _uid(pod) != read:
                read = _uid(pod)
                for container in self._follower.choice.containers:
                    self._read(read, container)
            elif over:
                return
            self._merged.stopped.wait(self._follower.pause)

    def _read(self, uid: str, container: str) -> None:
        """One container of one pod, over its restarts, until it is done for good."""
        position = Position(self._follower.choice.since)
        start: int | None = None  # number of the container's start that was read last
        while not self._merged.stopped.is_set():
            over = self._follower.is_over
            pod = self._look()
            if pod is None or _uid(pod) != uid or not _has(pod, container):
                return
            status = _status(pod, container)
            running = "running" in part(status, "state")
            whole = True
            if _has_started(status):
                restarts = integer(status, "restartCount") or 0
                if start is not None and restarts > start:  # what came after the last stream and before the restart
                    whole = self._stream(container, position, previous=True)
                if whole:
                    start = restarts
                    whole = self._stream(container, position, follow=running)
            if whole and not running:
                if over or _is_done(pod, status, container):
                    return
                self._wait_for_news(pod)
            else:
                self._merged.stopped.wait(self._follower.pause)

    def _stream(self, container: str, position: Position, *, previous: bool = False, follow: bool = False) -> bool:
        """Read on; whether the stream came to its end."""
        self._merged.set_reading(self._source, True)
        try:
            since = position.resume()
            for stamp, words in self._follower.cluster.logs(
                self._name, container, follow=follow, previous=previous, since=since
            ):
                if previous and utc(stamp) is None:  # kubelet's excuse for not having it any more
                    continue
                line = position.take(self._name, container, stamp, words)
                if line is not None:
                    self._merged.put(self._source, line)
                if self._merged.stopped.is_set():
                    break
        except NotFoundError:  # there is none, or no longer
            return True
        except UnreachableError:
            return False
        except ClusterError as error:
            self._merged.say(error)
            return False
        finally:
            self._merged.set_reading(self._source, False)
        return True

    def _look(self) -> Object | None:
        """The pod as it is now, None where it is gone: the watch's news may be older than the log."""
        while not self._merged.stopped.is_set():
            try:
                return self._follower.cluster.get(PODS, self._name)
            except NotFoundError:
                return None
            except UnreachableError:
                pass
            except ClusterError as error:
                self._merged.say(error)
            self._merged.stopped.wait(self._follower.pause)
        return None

    def _wait_for_news(self, pod: Object) -> None:
        """Until the watch tells of another state than that of `pod`, or it is all over."""
        while not self._follower.is_over:
            told = self._follower.pod(self._name)
            if told is None or _version(told) != _version(pod):
                return
            self._merged.stopped.wait(self._follower.pause)


def _uid(pod: Object) -> str:
    return text(pod, "metadata", "uid")


def _version(pod: Object) -> str:
    return text(pod, "metadata", "resourceVersion")


def _has(pod: Object, container: str) -> bool:
    containers = parts(pod, "spec", "initContainers") + parts(pod, "spec", "containers")
    return any(name == container for name in (text(one, "name") for one in containers))


def _status(pod: Object, container: str) -> Object:
    statuses = parts(pod, "status", "initContainerStatuses") + parts(pod, "status", "containerStatuses")
    return next((status for status in statuses if text(status, "name") == container), {})


def _has_started(status: Object) -> bool:
    state = part(status, "state")
    return "running" in state or "terminated" in state or bool(part(status, "lastState"))


def _is_done(pod: Object, status: Object, container: str) -> bool:
    """Whether the container will not start (again)."""
    is_init = any(text(one, "name") == container for one in parts(pod, "spec", "initContainers"))
    if is_init and integer(status, "state", "terminated", "exitCode") == 0:
        return True
    return text(pod, "status", "phase") in ("Succeeded", "Failed")
