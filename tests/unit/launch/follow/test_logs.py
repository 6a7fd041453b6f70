"""Logs of many pods in one stream: ordered, complete, without duplicates."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpmbee_job.errors import ClusterError, NotFoundError, UnreachableError
from cpmbee_job.launch.follow.following import follow_logs
from cpmbee_job.launch.follow.log_position import LogLine
from cpmbee_job.launch.follow.logs import MOST_PODS, LogSelection, read_logs
from cpmbee_job.launch.kube.protocol import PODS
from cpmbee_job.launch.runs.find import FoundRun
from cpmbee_job.run.keys import log_key
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec, parse_spec
from cpmbee_job.store.urls import open_store
from tests.unit.launch.live_cluster import LiveCluster, line, worker

W0, W1 = "ccpm-abc-worker-0", "ccpm-abc-worker-1"
SPEC = "name: ccpm\nmodel: s3://m/\ndata: {train: s3://d/}\noutput: s3://o/\n"


@pytest.fixture
def cluster() -> Iterator[LiveCluster]:
    live = LiveCluster()
    yield live
    live.over = True


@pytest.fixture
def messages() -> list[str]:
    return []


def found(run: Run | None = None) -> FoundRun:
    return FoundRun("ccpm", "abc", "s3://o/ccpm/abc", run, None)


def stored(folder: Path) -> FoundRun:
    store = open_store(f"file://{folder}", StorageSpec())
    return found(Run("s3://o/ccpm/abc", store, parse_spec(SPEC, source="spec.yaml"), StorageSpec()))


class Following:
    """Follows logs in a thread that appends to `shown`."""

    def __init__(self, cluster: LiveCluster, selection: LogSelection | None = None) -> None:
        self.shown: list[str] = []
        self.messages: list[str] = []
        self._ended = False
        lines = follow_logs(
            found(),
            cluster,
            selection or LogSelection(),
            ended=lambda: self._ended,
            on_message=self.messages.append,
            pause=0.005,
        )
        self._thread = threading.Thread(target=self._show, args=(lines,), daemon=True)
        self._thread.start()

    def _show(self, lines: Iterator[LogLine]) -> None:
        for one in lines:
            self.shown.append(one.text)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < deadline, (self.shown, self.messages)
            time.sleep(0.002)

    def until_shown(self, number: int) -> None:
        self.until(lambda: len(self.shown) >= number)

    def end(self) -> list[str]:
        self._ended = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.shown


# Reading what is there


def test_logs_of_all_pods_are_merged_by_time(cluster: LiveCluster, messages: list[str]) -> None:
    for index in (0, 1):
        cluster.put(PODS, worker(index))
    cluster.lines[W0, "prepare"] = [line(1, "prepare 0")]
    cluster.lines[W0, "pytorch"] = [line(3, "a"), line(5, "c")]
    cluster.lines[W1, "pytorch"] = [line(2, "first"), line(4, "b")]
    lines = list(read_logs(found(), cluster, LogSelection(), messages.append))
    assert [one.text for one in lines] == ["prepare 0", "first", "a", "b", "c"]
    assert (lines[0].pod, lines[0].container) == (W0, "prepare")


@pytest.mark.parametrize("name", [W1, "worker-1", "1"])
def test_a_pod_is_selected_by_its_name_or_the_end_of_it(cluster: LiveCluster, messages: list[str], name: str) -> None:
    for index in (0, 1, 11):
        cluster.put(PODS, worker(index))
        cluster.lines[f"ccpm-abc-worker-{index}", "pytorch"] = [line(1, f"from {index}")]
    assert [one.text for one in read_logs(found(), cluster, LogSelection(pod=name), messages.append)] == ["from 1"]


def test_an_unknown_pod_is_an_error_with_the_existing_pods(cluster: LiveCluster, messages: list[str]) -> None:
    cluster.put(PODS, worker(0))
    with pytest.raises(NotFoundError, match=f"worker-7.*{W0}"):
        list(read_logs(found(), cluster, LogSelection(pod="worker-7"), messages.append))


def test_previous_selects_the_log_before_a_restart(cluster: LiveCluster, messages: list[str]) -> None:
    cluster.put(PODS, worker(0, restarts=1))
    cluster.lines[W0, "pytorch"] = [line(2, "again")]
    cluster.lines[W0, "pytorch", "previous"] = [line(1, "crash")]
    selection = LogSelection(previous=True)
    assert [one.text for one in read_logs(found(), cluster, selection, messages.append)] == ["crash"]


def test_pods_without_a_log_are_an_error(cluster: LiveCluster, messages: list[str]) -> None:
    cluster.put(PODS, worker(0, "waiting"))
    with pytest.raises(NotFoundError, match="no log of pytorch"):
        list(read_logs(found(), cluster, LogSelection(), messages.append))


def test_an_interrupted_log_is_continued(cluster: LiveCluster, messages: list[str]) -> None:
    cluster.put(PODS, worker(0))
    cluster.lines[W0, "pytorch"] = [line(1 + i / 10, f"{i}") for i in range(40)]
    cluster.breaks[W0, "pytorch"] = [10, 25, 15]
    assert [one.text for one in read_logs(found(), cluster, LogSelection(), messages.append)] == [
        f"{i}" for i in range(40)
    ]


def test_only_the_first_pods_are_shown(cluster: LiveCluster, messages: list[str]) -> None:
    for index in range(512):
        cluster.put(PODS, worker(index))
        cluster.lines[f"ccpm-abc-worker-{index}", "pytorch"] = [line(1, f"{index}")]
    shown = [one.text for one in read_logs(found(), cluster, LogSelection(), messages.append)]
    assert shown == [f"{index}" for index in range(MOST_PODS)]
    assert "--pod" in messages[0]


# From the store


def test_logs_of_a_run_without_pods_come_from_the_store(
    cluster: LiveCluster, messages: list[str], tmp_path: Path
) -> None:
    run = stored(tmp_path)
    assert run.run is not None
    run.run.store.put(log_key(W0, 1), b"2026-01-31 12:00:01,000 INFO one\nno time\n2026-01-31 12:00:04,000 INFO four")
    run.run.store.put(log_key(W0, 2), b"2026-01-31 12:00:05,000 INFO five\n")
    run.run.store.put(log_key(W1, 1), b"2026-01-31 12:00:03,500 WARNING three\n")
    lines = list(read_logs(run, cluster, LogSelection(), messages.append))
    assert [one.text for one in lines] == ["INFO one", "no time", "WARNING three", "INFO four", "INFO five"]
    assert lines[1].time == "2026-01-31T12:00:01.000000000Z"
    assert "store" in messages[0]


def test_logs_of_a_missing_pod_come_from_the_store(cluster: LiveCluster, messages: list[str], tmp_path: Path) -> None:
    run = stored(tmp_path)
    assert run.run is not None
    for pod in (W0, W1):
        run.run.store.put(log_key(pod, 1), b"2026-01-31 12:00:02,000 INFO kept\n")
    cluster.put(PODS, worker(0, "ended"))
    cluster.lines[W0, "pytorch"] = [line(1, "there")]
    assert [one.text for one in read_logs(run, cluster, LogSelection(), messages.append)] == ["there", "INFO kept"]
    assert W1 in messages[0]


def test_pod_and_since_apply_to_stored_logs(cluster: LiveCluster, messages: list[str], tmp_path: Path) -> None:
    run = stored(tmp_path)
    assert run.run is not None
    run.run.store.put(log_key(W0, 1), b"2026-01-31 12:00:01,000 INFO one\n2026-01-31 12:00:04,000 INFO four\n")
    run.run.store.put(log_key(W1, 1), b"2026-01-31 12:00:05,000 INFO five\n")
    selection = LogSelection(pod="worker-0", since="2026-01-31T12:00:02.000000000Z")
    assert [one.text for one in read_logs(run, cluster, selection, messages.append)] == ["INFO four"]


def test_a_stored_log_longer_than_a_block_is_complete(
    cluster: LiveCluster, messages: list[str], tmp_path: Path
) -> None:
    run = stored(tmp_path)
    assert run.run is not None
    texts = [f"{number} {'x' * 97}" for number in range(9000)]
    run.run.store.put(log_key(W0, 1), "".join(f"2026-01-31 12:00:01,000 {text}\n" for text in texts).encode())
    assert [one.text for one in read_logs(run, cluster, LogSelection(), messages.append)] == texts


def test_a_run_without_logs_is_an_error(cluster: LiveCluster, messages: list[str], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no log"):
        list(read_logs(stored(tmp_path), cluster, LogSelection(), messages.append))


# Following


def test_follow_waits_for_pods_and_reads_to_the_end(cluster: LiveCluster) -> None:
    following = Following(cluster)
    cluster.put(PODS, worker(0, "waiting"))
    cluster.lines[W0, "prepare"] = [line(1, "prepared")]
    cluster.lines[W0, "pytorch"] = []
    cluster.put(PODS, worker(0))
    cluster.lines[W0, "pytorch"].append(line(2, "step 1"))
    following.until_shown(2)
    cluster.lines[W0, "pytorch"].append(line(3, "step 2"))
    following.until_shown(3)
    cluster.lines[W0, "pytorch"].append(line(4, "last messages"))
    cluster.put(PODS, worker(0, "ended"))
    assert following.end() == ["prepared", "step 1", "step 2", "last messages"]


def test_existing_lines_are_merged_by_time(cluster: LiveCluster) -> None:
    for index in (0, 1, 2):
        cluster.lines[f"ccpm-abc-worker-{index}", "pytorch"] = [
            line(i / 10 + index / 100, f"{i}.{index}") for i in range(300)
        ]
        cluster.put(PODS, worker(index, "ended"))
    following = Following(cluster)
    following.until_shown(900)
    assert following.end() == [f"{i}.{index}" for i in range(300) for index in range(3)]


def test_interrupted_streams_lose_and_repeat_no_lines(cluster: LiveCluster) -> None:
    dice = random.Random(1)
    for index in (0, 1):
        name = f"ccpm-abc-worker-{index}"
        cluster.lines[name, "pytorch"] = []
        cluster.breaks[name, "pytorch"] = [dice.randrange(1, 30) for _ in range(40)]
        cluster.put(PODS, worker(index))
    following = Following(cluster)
    for i in range(200):
        for index in (0, 1):
            # the same messages at other times, and one time for several lines
            cluster.lines[f"ccpm-abc-worker-{index}", "pytorch"].append(line(i // 3 / 10, f"{index}: {i % 7} {i}"))
    following.until_shown(400)
    for index in (0, 1):
        cluster.put(PODS, worker(index, "ended"))
    shown = following.end()
    for index in (0, 1):
        mine = [text for text in shown if text.startswith(f"{index}:")]
        assert mine == [f"{index}: {i % 7} {i}" for i in range(200)]


def test_a_restarted_container_is_followed_without_a_gap(cluster: LiveCluster) -> None:
    cluster.lines[W0, "pytorch"] = [line(1, "one")]
    cluster.put(PODS, worker(0))
    following = Following(cluster)
    following.until_shown(1)
    # it dies; what it said last is only in the log of the previous container when the stream is opened again
    cluster.lines[W0, "pytorch", "previous"] = [line(1, "one"), line(2, "dying")]
    cluster.lines[W0, "pytorch"] = [line(3, "again")]
    cluster.put(PODS, worker(0, restarts=1))
    following.until_shown(3)
    cluster.put(PODS, worker(0, "ended", restarts=1))
    assert following.end() == ["one", "dying", "again"]


def test_a_crash_loop_is_followed_during_its_backoff(cluster: LiveCluster) -> None:
    cluster.lines[W0, "pytorch"] = [line(1, "crash 1")]
    cluster.put(PODS, worker(0, "restarting", restarts=1))
    following = Following(cluster)
    following.until_shown(1)
    cluster.lines[W0, "pytorch", "previous"] = cluster.lines[W0, "pytorch"]
    cluster.lines[W0, "pytorch"] = [line(9, "crash 2")]
    cluster.put(PODS, worker(0, "restarting", restarts=2))
    following.until_shown(2)
    assert following.end() == ["crash 1", "crash 2"]


def test_a_replaced_pod_is_read_from_its_start(cluster: LiveCluster) -> None:
    cluster.lines[W0, "pytorch"] = [line(1, "old pod")]
    cluster.put(PODS, worker(0))
    following = Following(cluster)
    following.until_shown(1)
    del cluster.objects[PODS][W0]
    cluster.lines[W0, "pytorch"] = [line(5, "new pod")]
    cluster.put(PODS, worker(0, uid="another"))
    following.until_shown(2)
    cluster.put(PODS, worker(0, "ended", uid="another"))
    assert following.end() == ["old pod", "new pod"]


def test_a_vanished_pod_does_not_delay_the_end(cluster: LiveCluster) -> None:
    cluster.lines[W0, "pytorch"] = [line(1, "one")]
    cluster.put(PODS, worker(0))
    following = Following(cluster)
    following.until_shown(1)
    del cluster.objects[PODS][W0]
    assert following.end() == ["one"]


def test_an_unreachable_api_is_retried(cluster: LiveCluster) -> None:
    cluster.lines[W0, "pytorch"] = [line(1, "one")]
    cluster.put(PODS, worker(0))
    cluster.failures = [UnreachableError("away")] * 5
    following = Following(cluster)
    following.until_shown(1)
    cluster.put(PODS, worker(0, "ended"))
    assert following.end() == ["one"]


def test_a_denied_request_is_reported_once_and_retried(cluster: LiveCluster) -> None:
    cluster.lines[W0, "pytorch"] = [line(1, "one")]
    cluster.put(PODS, worker(0))
    following = Following(cluster)
    following.until_shown(1)
    cluster.failures = [ClusterError("token has expired")] * 5
    cluster.lines[W0, "pytorch"] = [*cluster.lines[W0, "pytorch"], line(2, "two")]  # the stream ends here
    following.until_shown(2)
    cluster.put(PODS, worker(0, "ended"))
    assert following.end() == ["one", "two"]
    assert following.messages == ["token has expired"]


def test_a_denied_first_request_is_an_error(cluster: LiveCluster) -> None:
    cluster.put(PODS, worker(0))
    cluster.refusals["logs", W0] = ClusterError("pods/log is forbidden")
    lines = follow_logs(found(), cluster, LogSelection(), ended=lambda: False, on_message=lambda _: None, pause=0.005)
    with pytest.raises(ClusterError, match="forbidden"):
        next(lines)


def test_only_the_first_pods_are_followed(cluster: LiveCluster) -> None:
    for index in range(512):
        cluster.lines[f"ccpm-abc-worker-{index}", "pytorch"] = [line(1, f"{index}")]
        cluster.put(PODS, worker(index))
    before = threading.active_count()
    following = Following(cluster)
    following.until_shown(MOST_PODS)
    assert threading.active_count() - before <= MOST_PODS + 2
    for index in range(512):
        cluster.put(PODS, worker(index, "ended"))
    assert sorted(map(int, following.end())) == list(range(MOST_PODS))
    assert cluster.streams <= MOST_PODS
    assert "--pod" in following.messages[0]


def test_a_slow_reader_blocks_the_threads(cluster: LiveCluster) -> None:
    cluster.lines[W0, "pytorch"] = [line(1, f"{i}") for i in range(20_000)]
    cluster.put(PODS, worker(0))
    lines = follow_logs(found(), cluster, LogSelection(), ended=lambda: False, on_message=lambda _: None, pause=0.005)
    first = next(lines)
    time.sleep(0.1)  # the log could have been read whole
    assert first.text == "0"
    assert cluster.open == 1
    lines.close()  # type: ignore[attr-defined]
