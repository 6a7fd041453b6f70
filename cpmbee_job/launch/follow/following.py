"""Follow the logs of a run's pods, with one thread for each pod, and one that watches the pods. They pass lines through
bounded queues, so that memory does not grow with the logs."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cpmbee_job.errors import ClusterError, NotFoundError, UnreachableError
from cpmbee_job.launch.follow.log_position import LogLine, LogPosition, utc
from cpmbee_job.launch.follow.logs import HIDDEN, LogSelection, read_logs
from cpmbee_job.launch.follow.merging import LineMerger
from cpmbee_job.launch.kube.fields import integer, name_of, object_at, objects_at, text_at
from cpmbee_job.launch.kube.protocol import PODS, Cluster, Object, get_or_none
from cpmbee_job.launch.runs.find import FoundRun
from cpmbee_job.launch.runs.pods import index_of

PAUSE = 1.0
"""Seconds between two tries to read an interrupted log, and between two checks of the pod's state."""
END_GRACE = 30.0
"""Seconds after the end of the run during which pods may still write."""


def follow_logs(
    found: FoundRun,
    cluster: Cluster,
    selection: LogSelection,
    *,
    ended: Callable[[], bool],
    on_message: Callable[[str], None],
    pause: float = PAUSE,
) -> Iterator[LogLine]:
    """Yield the log lines from the start (or `selection.since`) until the run has `ended` and all logs are read.

    Waits for pods, and continues across restarted containers and replaced pods without losing or repeating lines, as
    far as the kubelet still has them. `on_message` gets the API's denials, which are retried, and which pods are not
    shown. Raises `ClusterError` if the API denies the first request, `NotFoundError` if there is no log at the end.
    """
    merged = LineMerger()
    follower = _Follower(found, cluster, selection, merged, ended, pause)
    shown = False
    try:
        for entry in merged.entries(follower.work):
            if isinstance(entry, LogLine):
                shown = True
                yield entry
            elif isinstance(entry, str) or shown:
                on_message(str(entry))
            else:
                raise entry
    finally:
        merged.stop()
    if not shown:  # the run ended before, or its pods are gone
        yield from read_logs(found, cluster, selection, on_message)


@dataclass
class _Follower:
    """Watches the pods, and starts a thread for each selected one."""

    found: FoundRun
    cluster: Cluster
    selection: LogSelection
    merged: LineMerger
    ended: Callable[[], bool]
    pause: float

    def __post_init__(self) -> None:
        self._ended_at: float | None = None
        self.pods: dict[str, Object] = {}
        """By name, as last seen by the watch."""
        self._new: deque[Object] = deque()
        self._tails: dict[str, threading.Thread] = {}
        threading.Thread(target=self._watch, name="pods", daemon=True).start()

    def work(self) -> bool:
        """Start threads for new pods. Return whether lines may still arrive."""
        while self._new:
            pod = self._new.popleft()
            name = name_of(pod)
            if not self.selection.matches(name, index_of(pod)):
                if self.selection.pod is None:
                    self.merged.report(HIDDEN)
            elif name not in self._tails:
                tail = _Tail(name, self)
                self._tails[name] = threading.Thread(target=tail.run, name=name, daemon=True)
                self._tails[name].start()
        if self._ended_at is None and self.ended():
            self._ended_at = time.monotonic()
        if self._ended_at is None:
            return True
        late = time.monotonic() - self._ended_at > END_GRACE
        return not late and any(thread.is_alive() for thread in self._tails.values())

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, or the reader has stopped."""
        return self._ended_at is not None or self.merged.stopped.is_set()

    def _watch(self) -> None:
        while not self.merged.stopped.is_set():
            try:
                for event in self.cluster.watch(PODS, self.found.labels):
                    if self.merged.stopped.is_set():
                        return
                    if event is not None:
                        self._update(*event)
            except ClusterError as error:
                self.merged.report(error)
            self.merged.stopped.wait(self.pause)

    def _update(self, change: str, pod: Object) -> None:
        name = name_of(pod)
        known = self.pods.get(name)
        if change != "DELETED":
            self.pods[name] = pod
            if known is None:
                self._new.append(pod)
        elif known is not None and _uid(known) == _uid(pod):
            del self.pods[name]


class _Tail:
    """Reads the logs of the successive pods of one name."""

    def __init__(self, name: str, follower: _Follower) -> None:
        self._name = name
        self._follower = follower
        self._merged = follower.merged
        self._source = follower.merged.add_queue()

    def run(self) -> None:
        read = ""
        while True:
            over = self._follower.is_over
            pod = self._follower.pods.get(self._name)
            if pod is not None and _uid(pod) != read:
                read = _uid(pod)
                for container in self._follower.selection.containers:
                    self._read(read, container)
            elif over:
                return
            self._merged.stopped.wait(self._follower.pause)

    def _read(self, uid: str, container: str) -> None:
        """Read one container of one pod across its restarts, until it will not start again."""
        position = LogPosition(self._follower.selection.since)
        start: int | None = None  # the restart count of the log that was read last
        while not self._merged.stopped.is_set():
            over = self._follower.is_over
            pod = self._get_pod()
            if pod is None or _uid(pod) != uid or not _has(pod, container):
                return
            status = _status(pod, container)
            running = "running" in object_at(status, "state")
            whole = True
            if _has_started(status):
                restarts = integer(status, "restartCount") or 0
                if start is not None and restarts > start:  # lines between the last stream and the restart
                    whole = self._stream(container, position, previous=True)
                if whole:
                    start = restarts
                    whole = self._stream(container, position, follow=running)
            if whole and not running:
                if over or _is_done(pod, status, container):
                    return
                self._wait_for_change(pod)
            else:
                self._merged.stopped.wait(self._follower.pause)

    def _stream(self, container: str, position: LogPosition, *, previous: bool = False, follow: bool = False) -> bool:
        """Read new lines. Return whether the stream reached its end."""
        self._merged.set_reading(self._source, True)
        try:
            since = position.resume()
            for stamp, content in self._follower.cluster.logs(
                self._name, container, follow=follow, previous=previous, since=since
            ):
                if previous and utc(stamp) is None:  # the kubelet's message that it no longer has the log
                    continue
                line = position.take(self._name, container, stamp, content)
                if line is not None:
                    self._merged.put(self._source, line)
                if self._merged.stopped.is_set():
                    break
        except NotFoundError:  # no log yet, or no longer
            return True
        except UnreachableError:
            return False
        except ClusterError as error:
            self._merged.report(error)
            return False
        finally:
            self._merged.set_reading(self._source, False)
        return True

    def _get_pod(self) -> Object | None:
        """Return the current pod, None if it is gone. The watch may lag behind the log."""
        while not self._merged.stopped.is_set():
            try:
                return get_or_none(self._follower.cluster, PODS, self._name)
            except UnreachableError:
                pass
            except ClusterError as error:
                self._merged.report(error)
            self._merged.stopped.wait(self._follower.pause)
        return None

    def _wait_for_change(self, pod: Object) -> None:
        """Wait until the watch shows another state than that of `pod`, or the run has ended."""
        while not self._follower.is_over:
            seen = self._follower.pods.get(self._name)
            if seen is None or _version(seen) != _version(pod):
                return
            self._merged.stopped.wait(self._follower.pause)


def _uid(pod: Object) -> str:
    return text_at(pod, "metadata", "uid")


def _version(pod: Object) -> str:
    return text_at(pod, "metadata", "resourceVersion")


def _has(pod: Object, container: str) -> bool:
    containers = objects_at(pod, "spec", "initContainers") + objects_at(pod, "spec", "containers")
    return container in (text_at(one, "name") for one in containers)


def _status(pod: Object, container: str) -> Object:
    statuses = objects_at(pod, "status", "initContainerStatuses") + objects_at(pod, "status", "containerStatuses")
    return next((status for status in statuses if text_at(status, "name") == container), {})


def _has_started(status: Object) -> bool:
    state = object_at(status, "state")
    return "running" in state or "terminated" in state or bool(object_at(status, "lastState"))


def _is_done(pod: Object, status: Object, container: str) -> bool:
    """Return whether the container will not start again."""
    is_init = any(text_at(one, "name") == container for one in objects_at(pod, "spec", "initContainers"))
    if is_init and integer(status, "state", "terminated", "exitCode") == 0:
        return True
    return text_at(pod, "status", "phase") in ("Succeeded", "Failed")
