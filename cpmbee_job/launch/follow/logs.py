"""What the pods of a run say: all ranks merged by time, from the cluster, or from the store when the pods are gone."""

import heapq
import re
from collections import Counter, deque
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter

from cpmbee_job.errors import NotFoundError, StoreError, UnreachableError
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
"""Pods whose logs are read at once, from worker 0 on."""
REMEMBERED = 4096
"""Lines of a log that are known again when it is read from a little earlier."""
BLOCK = 2**18
"""Bytes of a stored log that are read at once."""
HIDDEN = f"only workers 0 to {MOST_PODS - 1} are shown; --pod shows another"


@dataclass(frozen=True)
class LogLine:
    time: str
    """RFC 3339 in UTC with nine digits, so that times sort as text; "" before the first that is known."""
    pod: str
    container: str
    text: str


@dataclass(frozen=True)
class Choice:
    """Which lines are wanted."""

    pod: str | None = None
    """Its name, or what is behind the job's: `worker-1`, `1`."""
    containers: tuple[str, ...] = CONTAINERS
    since: str | None = None
    """A time as in `LogLine`."""
    previous: bool = False
    """Of the containers before the present ones."""

    def wants(self, pod: str, index: int | None) -> bool:
        if self.pod is not None:
            return pod == self.pod or pod.endswith((f"-{self.pod}", f"-worker-{self.pod}"))
        return index is None or index < MOST_PODS


def read_logs(
    found: FoundRun, cluster: Cluster | None, choice: Choice, on_words: Callable[[str], None]
) -> Iterator[LogLine]:
    """What has been said so far. `on_words` learns what is not shown, and where the lines come from.

    Raises `NotFoundError` where nobody has said anything (that is wanted).
    """
    pods = {} if cluster is None else {name_of(p): index_of(p) for p in cluster.list(PODS, found.labels)}
    if cluster is None or not pods:
        if found.run is None:
            why = found.store_problem or found.cluster_problem or "it has neither pods nor a folder in the store"
            raise NotFoundError(f"{found.reference}: no logs: {why}")
        on_words(f"{found.cluster_problem or 'it has no pods (any more)'}; this is what the store has kept")
        yield from _stored_logs(found.run, choice, on_words)
        return
    gone, stored = _gone(found.run, pods, choice, on_words)
    wanted = [name for name, index in sorted(pods.items(), key=_by_index) if choice.wants(name, index)]
    if not wanted and not gone:
        raise NotFoundError(f"no pod {choice.pod} among {', '.join(sorted(pods)[:9])}")
    if choice.pod is None and len(wanted) < len(pods):
        on_words(HIDDEN)
    if gone:
        are = "is" if len(gone) == 1 else "are"
        on_words(f"{', '.join(gone[:9])} {are} gone; of that, what the store has kept")
    silent: list[str] = []
    logs = [
        _whole_log(cluster, pod, container, choice, silent.append) for pod in wanted for container in choice.containers
    ]
    said = False
    for line in _merged([*logs, *stored], choice):
        said = True
        yield line
    if not said and not gone and len(silent) == len(logs):
        raise NotFoundError("\n".join(dict.fromkeys(silent)))


def _stored_logs(run: Run, choice: Choice, on_words: Callable[[str], None]) -> Iterator[LogLine]:
    """What training wrote, as each attempt left it in the store. `previous`: without the newest attempt's."""
    attempts = _attempts(run)
    chosen = _chosen(attempts, choice)
    if not chosen:
        kept = f"; there is {', '.join(sorted(attempts)[:9])}" if attempts else ""
        what = choice.pod or ("an earlier attempt" if choice.previous else " and ".join(choice.containers))
        raise NotFoundError(f"{run.url}: no log of {what} in the store{kept}")
    if choice.pod is None and not all(choice.wants(pod, index_in(pod)) for pod in attempts):
        on_words(HIDDEN)
    yield from _merged([_stored(run, pod, logs) for pod, logs in chosen.items()], choice)


def _gone(
    run: Run | None, pods: Container[str], choice: Choice, on_words: Callable[[str], None]
) -> tuple[list[str], list[Iterator[LogLine]]]:
    """Of the run's pods those that are no longer there, and what the store has kept of them."""
    if run is None:
        return [], []
    try:
        attempts = {pod: logs for pod, logs in _attempts(run).items() if pod not in pods}
    except StoreError as error:
        on_words(f"what the store has kept of other pods can't be read: {error.message}")
        return [], []
    chosen = _chosen(attempts, choice)
    return sorted(chosen), [_stored(run, pod, logs) for pod, logs in chosen.items()]


def _attempts(run: Run) -> dict[str, list[ObjectInfo]]:
    """The logs in the store by pod, the oldest attempt's first."""
    attempts: dict[str, list[ObjectInfo]] = {}
    for entry in run.store.list("logs/"):
        match = re.fullmatch(r"logs/([^/]+)/\d+\.log", entry.key)
        if match:
            attempts.setdefault(match[1], []).append(entry)
    return attempts


def _chosen(attempts: dict[str, list[ObjectInfo]], choice: Choice) -> dict[str, list[ObjectInfo]]:
    if naming.TRAIN_CONTAINER not in choice.containers:  # the init step's are not kept
        return {}
    chosen = {pod: logs for pod, logs in attempts.items() if choice.wants(pod, index_in(pod))}
    return {pod: logs[:-1] for pod, logs in chosen.items() if logs[:-1]} if choice.previous else chosen


def _merged(logs: list[Iterator[LogLine]], choice: Choice) -> Iterator[LogLine]:
    for line in heapq.merge(*logs, key=attrgetter("time")):
        if choice.since is None or line.time >= choice.since:
            yield line


def _by_index(pod: tuple[str, int | None]) -> int:
    return pod[1] or 0


class Position:
    """How far a container's log has been read, so that reading goes on there, whatever happened to the last stream.

    Servers begin with the whole second that they are asked for, and two streams of a container may be stamped in
    another order than they are written; so reading begins a little earlier and knows again what it has seen.
    """

    def __init__(self, since: str | None) -> None:
        self._since = since
        self._recent: deque[tuple[str, int]] = deque(maxlen=REMEMBERED)
        self._again: Counter[tuple[str, int]] = Counter()
        self._time = since or ""
        self._excuse = ""

    def resume(self) -> str | None:
        """The time to ask for; lines that come from now on may be known."""
        self._again = Counter(self._recent)
        if not self._recent:
            return self._since
        last = datetime.fromisoformat(self._recent[-1][0][:19]).replace(tzinfo=UTC) - timedelta(seconds=1)
        return last.strftime("%Y-%m-%dT%H:%M:%SZ")

    def take(self, pod: str, container: str, stamp: str, words: str) -> LogLine | None:
        """The line if it is new. One without a time is kubelet's excuse, told once."""
        time = utc(stamp)
        if time is None:
            words = f"{stamp} {words}".strip()
            known, self._excuse = self._excuse == words, words
            return None if known else LogLine(self._time, pod, container, words)
        if self._since is not None and time < self._since:
            return None
        mark = (time, hash(words))
        if self._again:
            if self._again[mark] > 0:
                self._again[mark] -= 1
                return None
            if len(self._recent) == REMEMBERED and time < self._recent[0][0]:
                return None
        self._recent.append(mark)
        self._time = time
        return LogLine(time, pod, container, words)


def utc(stamp: str) -> str | None:
    """An RFC 3339 time as `LogLine` has it; None where it is none. Nodes write their own time zone."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", stamp)
    if match is None:
        return None
    seconds, fraction, zone = match.groups()
    if zone != "Z":
        seconds = datetime.fromisoformat(seconds + zone).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{seconds}.{fraction or '':0<9}Z"


def _whole_log(
    cluster: Cluster, pod: str, container: str, choice: Choice, on_silence: Callable[[str], None]
) -> Iterator[LogLine]:
    """A container's log to its present end, over streams that break."""
    position, breaks = Position(choice.since), 0
    while True:
        try:
            for stamp, words in cluster.logs(pod, container, previous=choice.previous, since=position.resume()):
                line = position.take(pod, container, stamp, words)
                if line is not None:
                    breaks = 0
                    yield line
        except NotFoundError as error:
            on_silence(error.message)
        except UnreachableError:
            breaks += 1
            if breaks > 3:
                raise
            continue
        return


def _stored(run: Run, pod: str, logs: list[ObjectInfo]) -> Iterator[LogLine]:
    time = ""
    for log in logs:
        rest = b""
        for start in range(0, log.size, BLOCK):
            length = min(BLOCK, log.size - start)
            *lines, rest = (rest + run.store.get_range(log.key, start, length)).split(b"\n")
            for line in [*lines, *([rest] if rest and start + length == log.size else [])]:
                words = line.decode(errors="replace")
                match = re.match(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d),(\d{3}) ", words)
                if match:  # a traceback's lines have none
                    time = f"{match[1]}T{match[2]}.{match[3]}000000Z"
                    words = words[match.end() :]
                yield LogLine(time, pod, naming.TRAIN_CONTAINER, words)
