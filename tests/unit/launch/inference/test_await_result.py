"""Waiting for the result of an inference: what ends the wait, and which states are reported."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cpmbee_job.errors import ClusterError, JobFailedError, StoreError, UnfinishedError, UnreachableError
from cpmbee_job.launch.follow.polling import GRACE
from cpmbee_job.launch.inference.await_result import wait_for_result
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import EVENTS, JOBS, PODS, QUEUE_LABEL, Object
from cpmbee_job.launch.runs.find import FoundRun
from cpmbee_job.run import keys
from cpmbee_job.store.urls import open_store
from tests.fake_cluster import FakeCluster

FOUND = FoundRun("ccpm", "evaluate-0a1b", "s3://o/inference/0a1b", None, None)


class Waiting:
    """A wait whose clock advances only in its pauses; each pause calls the next function of `then`."""

    def __init__(self, folder: Path) -> None:
        self.store = open_store(str(folder))
        self.cluster = FakeCluster()
        self.now = 0.0
        self.states: list[str] = []
        self.then: list[Callable[[], object]] = []

    def put_job(self, *conditions: str, **spec: object) -> None:
        labels = {**FOUND.labels, QUEUE_LABEL: "team-a"}
        happened = [{"type": one, "status": "True", "message": "the limit is reached"} for one in conditions]
        annotations = {naming.URL_ANNOTATION: FOUND.url}
        metadata = {"name": FOUND.job_name, "uid": "j1", "labels": labels, "annotations": annotations}
        self.cluster.put(JOBS, {"metadata": metadata, "spec": spec, "status": {"conditions": happened}})

    def put_pod(self, name: str, phase: str, state: Object, made: str = "2026-01-31T12:00:00Z") -> None:
        labels = {**FOUND.labels, naming.COMMAND_LABEL: "evaluate"}
        containers = [{"name": naming.TRAIN_CONTAINER, "image": "example/train:9"}]
        statuses = [{"name": naming.TRAIN_CONTAINER, "image": "example/train:9", "state": state}]
        self.cluster.put(
            PODS,
            {
                "metadata": {"name": name, "labels": labels, "creationTimestamp": made},
                "spec": {"containers": containers, "nodeName": "node-1"},
                "status": {"phase": phase, "containerStatuses": statuses},
            },
        )

    def leave_scores(self) -> None:
        self.store.put(keys.SCORES, b"{}")

    def run(self, timeout: float | None = None) -> None:
        def pause(seconds: float) -> None:
            self.now += seconds
            if self.then:
                self.then.pop(0)()

        wait_for_result(
            FOUND,
            self.store,
            keys.SCORES,
            self.cluster,
            on_state=self.states.append,
            timeout=timeout,
            clock=lambda: self.now,
            pause=pause,
        )


@pytest.fixture
def waiting(tmp_path: Path) -> Waiting:
    return Waiting(tmp_path)


def test_the_result_ends_the_wait_and_states_are_reported(waiting: Waiting) -> None:
    image = {"waiting": {"reason": "ErrImagePull", "message": "manifest unknown"}}
    waiting.put_job(suspend=True)
    waiting.then = [
        waiting.put_job,
        lambda: waiting.put_pod("a", "Pending", image),
        lambda: waiting.put_pod("a", "Running", {"running": {}}),
        waiting.leave_scores,
    ]
    waiting.run()
    assert waiting.states == [
        "waits in the Kueue LocalQueue team-a",
        "pending",
        "pending: cannot pull image example/train:9 (ImagePullBackOff): manifest unknown (check `image`)",
        "running",
    ]


def test_the_reason_why_a_pod_cannot_be_created_is_reported(waiting: Waiting) -> None:
    waiting.put_job()
    refusal = {"reason": "FailedCreate", "message": 'Error creating: pods "x" is forbidden: no service account t'}
    waiting.cluster.put(EVENTS, {"metadata": {"name": "e"}, "involvedObject": {"uid": "j1"}, **refusal})
    with pytest.raises(UnfinishedError, match="its pod cannot be created: no service account t"):
        waiting.run(timeout=5)


@pytest.mark.parametrize(
    ("exit_code", "code", "words"),
    [
        (3, 3, "evaluate failed with exit code 3: bad row"),
        (137, 100, "evaluate was terminated by SIGKILL"),
        (2, 2, "code 2"),
    ],
)
def test_the_error_is_that_of_the_last_failed_pod(waiting: Waiting, exit_code: int, code: int, words: str) -> None:
    waiting.put_job("Failed")
    waiting.put_pod("z", "Failed", {"terminated": {"exitCode": 4}}, made="2026-01-31T11:00:00Z")
    waiting.put_pod("a", "Failed", {"terminated": {"exitCode": exit_code, "message": "bad row"}})
    with pytest.raises(JobFailedError, match=words) as failure:
        waiting.run()
    assert failure.value.exit_code == code


def test_without_a_pod_the_error_is_that_of_the_job(waiting: Waiting) -> None:
    waiting.put_job("Failed")
    with pytest.raises(JobFailedError, match="the limit is reached") as failure:
        waiting.run()
    assert failure.value.exit_code == 100


def test_errors_of_cluster_and_store_do_not_end_the_wait(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting.put_job()
    waiting.cluster.failures = [UnreachableError("no answer"), ClusterError("not now")]
    looks = iter([StoreError("no route")])
    info = waiting.store.info

    def shaky(key: str) -> object:
        for error in looks:
            raise error
        return info(key)

    monkeypatch.setattr(waiting.store, "info", shaky)
    waiting.then = [lambda: None, lambda: None, lambda: None, waiting.leave_scores]
    waiting.run()
    assert [state for state in waiting.states if "cannot be observed" in state] == [
        "cannot be observed: no route",
        "cannot be observed: no answer",
        "cannot be observed: not now",
    ]


@pytest.mark.parametrize("left", ["Complete", None])
def test_an_end_without_a_result_fails_after_a_minute(waiting: Waiting, left: str | None) -> None:
    if left is not None:
        waiting.put_job(left)
    with pytest.raises(JobFailedError, match=r"has no scores\.json"):
        waiting.run()
    assert waiting.now >= GRACE


def test_a_late_result_counts(waiting: Waiting) -> None:
    waiting.put_job("Complete")
    waiting.then = [waiting.leave_scores]
    waiting.run()
