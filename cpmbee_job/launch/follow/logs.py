"""Read the logs of a run: all pods merged by time, from the cluster, or from the store for pods that are gone."""

import heapq
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from operator import attrgetter

from cpmbee_job.errors import NotFoundError, StoreError, UnreachableError
from cpmbee_job.launch.follow.log_position import LogLine, LogPosition
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.fields import name_of
from cpmbee_job.launch.kube.protocol import PODS, Cluster
from cpmbee_job.launch.runs.find import FoundRun
from cpmbee_job.launch.runs.jobs import index_in
from cpmbee_job.launch.runs.pods import index_of
from cpmbee_job.run.run import Run
from cpmbee_job.store.base import ObjectInfo

CONTAINERS = (naming.PREPARE_CONTAINER, naming.TRAIN_CONTAINER)
MOST_PODS = 32
"""Maximum number of pods whose logs are read, starting with worker 0."""
BLOCK = 2**18
"""Bytes of a stored log that are read in one request."""
HIDDEN = f"only workers 0 to {MOST_PODS - 1} are shown; use --pod for another one"


@dataclass(frozen=True)
class LogSelection:
    """Selects lines of the logs."""

    pod: str | None = None
    """The name of a pod, or its end: `worker-1`, `1`."""
    containers: tuple[str, ...] = CONTAINERS
    since: str | None = None
    """The earliest time, as in `LogLine`."""
    previous: bool = False
    """Select the logs of the previous containers."""

    def matches(self, pod: str, index: int | None) -> bool:
        if self.pod is not None:
            return pod == self.pod or pod.endswith((f"-{self.pod}", f"-worker-{self.pod}"))
        return index is None or index < MOST_PODS


def read_logs(
    found: FoundRun, cluster: Cluster | None, selection: LogSelection, on_message: Callable[[str], None]
) -> Iterator[LogLine]:
    """Yield the lines up to now. `on_message` gets which pods are not shown, and which logs come from the store.

    Raises `NotFoundError` if no log matches.
    """
    pods = {} if cluster is None else {name_of(pod): index_of(pod) for pod in cluster.list(PODS, found.labels)}
    attempts = _stored_attempts(found, pods, on_message)
    names = {**{pod: index_in(pod) for pod in attempts}, **pods}
    matching = {pod for pod, index in names.items() if selection.matches(pod, index)}
    if selection.pod is None and len(matching) < len(names):
        on_message(HIDDEN)
    live = sorted(matching & pods.keys(), key=lambda pod: pods[pod] or 0)
    stored = {pod: logs[:-1] if selection.previous else logs for pod, logs in attempts.items() if pod in matching}
    stored = {pod: logs for pod, logs in stored.items() if logs and naming.TRAIN_CONTAINER in selection.containers}
    if not live and not stored:
        what = selection.pod or ("an earlier attempt" if selection.previous else " and ".join(selection.containers))
        existing = f"; the pods are {', '.join(sorted(names)[:9])}" if names else ""
        raise NotFoundError(f"{found.reference}: no log of {what}{existing}")
    if stored:
        gone = f"gone: {', '.join(sorted(stored)[:9])}" if pods else found.cluster_problem or "the pods are gone"
        on_message(f"{gone}; showing the logs in the store")
    without_log: list[str] = []
    logs: list[Iterator[LogLine]] = []
    if cluster is not None:
        containers = [(pod, container) for pod in live for container in selection.containers]
        logs += [_live_log(cluster, *one, selection, without_log.append) for one in containers]
    if found.run is not None:
        logs += [_stored_log(found.run, pod, kept) for pod, kept in stored.items()]
    has_lines = False
    for line in _merged(logs, selection):
        has_lines = True
        yield line
    if not has_lines and not stored and len(without_log) == len(logs):
        raise NotFoundError("\n".join(dict.fromkeys(without_log)))


def _stored_attempts(
    found: FoundRun, pods: Collection[str], on_message: Callable[[str], None]
) -> dict[str, list[ObjectInfo]]:
    """Return the training logs in the store by pod, the oldest attempt first, of all but the existing `pods`. The logs
    of init containers are not stored."""
    attempts: dict[str, list[ObjectInfo]] = {}
    try:
        for entry in () if found.run is None else found.run.store.list("logs/"):
            match = re.fullmatch(r"logs/([^/]+)/\d+\.log", entry.key)
            if match and match[1] not in pods:
                attempts.setdefault(match[1], []).append(entry)
    except StoreError as error:
        if not pods:
            raise
        on_message(f"cannot read the logs of other pods in the store: {error.message}")
        return {}
    if found.run is None and not pods:
        why = found.store_problem or found.cluster_problem or "there are neither pods nor a folder in the store"
        raise NotFoundError(f"{found.reference}: no logs: {why}")
    return attempts


def _merged(logs: list[Iterator[LogLine]], selection: LogSelection) -> Iterator[LogLine]:
    for line in heapq.merge(*logs, key=attrgetter("time")):
        if selection.since is None or line.time >= selection.since:
            yield line


def _live_log(
    cluster: Cluster, pod: str, container: str, selection: LogSelection, on_missing: Callable[[str], None]
) -> Iterator[LogLine]:
    """Yield a container's log up to its current end, reopening interrupted streams."""
    position, breaks = LogPosition(selection.since), 0
    while True:
        try:
            for stamp, content in cluster.logs(pod, container, previous=selection.previous, since=position.resume()):
                line = position.take(pod, container, stamp, content)
                if line is not None:
                    breaks = 0
                    yield line
        except NotFoundError as error:
            on_missing(error.message)
        except UnreachableError:
            breaks += 1
            if breaks > 3:
                raise
            continue
        return


def _stored_log(run: Run, pod: str, logs: list[ObjectInfo]) -> Iterator[LogLine]:
    """Yield the lines of a pod's attempts. A line without a time gets that of the line before it."""
    time = ""
    for log in logs:
        rest = b""
        for start in range(0, log.size, BLOCK):
            length = min(BLOCK, log.size - start)
            *lines, rest = (rest + run.store.get_range(log.key, start, length)).split(b"\n")
            for line in [*lines, *([rest] if rest and start + length == log.size else [])]:
                content = line.decode(errors="replace")
                match = re.match(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d),(\d{3}) ", content)
                if match:  # the lines of a traceback have no time
                    time = f"{match[1]}T{match[2]}.{match[3]}000000Z"
                    content = content[match.end() :]
                yield LogLine(time, pod, naming.TRAIN_CONTAINER, content)
