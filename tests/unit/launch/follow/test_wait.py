"""Waiting for the end of a run: what ends the wait, and what does not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cpmbee_job import documents
from cpmbee_job.errors import (
    CancelledError,
    ClusterError,
    JobFailedError,
    StoreError,
    UnfinishedError,
    UnreachableError,
)
from cpmbee_job.launch.follow.polling import GRACE
from cpmbee_job.launch.follow.wait import as_error, wait_for_end
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import PYTORCHJOBS, Object
from cpmbee_job.launch.runs.find import FoundRun
from cpmbee_job.launch.runs.status import RunStatus
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec, parse_spec
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store
from tests.fake_cluster import FakeCluster

SPEC = "name: ccpm\nmodel: s3://m/\ndata: {train: s3://d/}\noutput: s3://o/\n"


def job(*conditions: str) -> Object:
    labels = {naming.NAME_LABEL: "ccpm", naming.RUN_LABEL: "abc"}
    annotations = {naming.URL_ANNOTATION: "s3://o/ccpm/abc"}
    return {
        "metadata": {"name": naming.job_name("ccpm", "abc"), "labels": labels, "annotations": annotations},
        "spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": 1, "template": {"spec": {}}}}},
        "status": {"conditions": [{"type": one, "status": "True", "message": one} for one in conditions]},
    }


class Switched:
    """A store that is unreachable while `away`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away = False

    def __getattr__(self, name: str) -> Any:
        if self.away:
            raise StoreError("no route to the store")
        return getattr(self._store, name)


class Waiting:
    """A wait whose clock advances only in its pauses; each pause calls the next function of `then`."""

    def __init__(self, folder: Path) -> None:
        self.store = Switched(open_store(f"file://{folder}", StorageSpec()))
        self.run = Run("s3://o/ccpm/abc", self.store, parse_spec(SPEC, source="spec.yaml"), StorageSpec())
        self.cluster = FakeCluster()
        self.cluster.put(PYTORCHJOBS, job("Running"))
        self.now = 0.0
        self.pauses: list[float] = []
        self.phases: list[str] = []
        self.troubles: list[str] = []
        self.then: Iterator[Callable[[], object]] = iter(())

    def wait(self, *then: Callable[[], object], timeout: float | None = 3600, run: bool = True) -> RunStatus:
        self.then = iter(then)
        found = FoundRun("ccpm", "abc", self.run.url if run else "", self.run if run else None, None)
        return wait_for_end(
            found,
            self.cluster,
            on_status=lambda status: self.phases.append(status.phase),
            on_trouble=self.troubles.append,
            timeout=timeout,
            clock=lambda: self.now,
            pause=self._pause,
        )

    def _pause(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)
        next(self.then, lambda: None)()

    def succeed(self) -> None:
        for pointer in (keys.BEST, keys.LAST):
            self.run.store.put(pointer, documents.to_json({"step": 7, "prefix": "delta/7.1/"}))
        self.run.store.put("delta/7.1/manifest.json", b"{}")
        self.run.finish("succeeded", "all epochs done")

    def store_is_back(self) -> None:
        self.store.away = False

    def forget(self) -> None:
        del self.cluster.objects[PYTORCHJOBS][naming.job_name("ccpm", "abc")]


@pytest.fixture
def waiting(tmp_path: Path) -> Waiting:
    return Waiting(tmp_path)


def test_a_successful_run_has_exit_code_0(waiting: Waiting) -> None:
    status = waiting.wait(lambda: None, waiting.succeed)
    assert (status.phase, status.exit_code) == ("succeeded", 0)
    assert as_error(status) is None
    assert len(waiting.phases) == 3


def test_pauses_grow(waiting: Waiting) -> None:
    waiting.wait(*[lambda: None] * 20, waiting.succeed)
    assert waiting.pauses[0] == 2
    assert waiting.pauses == sorted(waiting.pauses)
    assert waiting.pauses[-1] == 15


def test_a_failed_run_has_the_exit_code_of_its_error(waiting: Waiting) -> None:
    status = waiting.wait(lambda: waiting.run.finish("failed", "row 7 is bad", exit_code=3))
    error = as_error(status)
    assert isinstance(error, JobFailedError)
    assert error.exit_code == 3
    assert "row 7 is bad" in str(error)
    assert "submit again" in str(error)
    assert JobFailedError.exit_code == 100, "of the class, still"


def test_a_cancelled_run_has_exit_code_103(waiting: Waiting) -> None:
    error = as_error(waiting.wait(lambda: waiting.run.finish("cancelled", "by me")))
    assert isinstance(error, CancelledError)
    assert error.exit_code == 103


def test_a_failed_job_without_a_result_has_exit_code_100(waiting: Waiting) -> None:
    status = waiting.wait(lambda: waiting.cluster.put(PYTORCHJOBS, job("Running", "Failed")))
    error = as_error(status)
    assert error is not None
    assert error.exit_code == 100


def test_the_timeout_raises_unfinished(waiting: Waiting) -> None:
    with pytest.raises(UnfinishedError, match="did not end within 60 s") as caught:
        waiting.wait(timeout=60)
    assert waiting.now == 60
    assert caught.value.exit_code == 101


def test_an_unreachable_api_does_not_end_the_wait(waiting: Waiting) -> None:
    waiting.cluster.failures = [UnreachableError("connection refused")] * 3 + [ClusterError("token has expired")] * 3
    assert waiting.wait(*[lambda: None] * 6, waiting.succeed).exit_code == 0


def test_a_run_that_cannot_be_observed_is_not_lost(waiting: Waiting) -> None:
    waiting.cluster.refusals["get", PYTORCHJOBS] = UnreachableError("connection refused")
    with pytest.raises(UnfinishedError):
        waiting.wait(timeout=10 * GRACE)


def test_a_success_without_its_delta_fails(waiting: Waiting) -> None:
    status = waiting.wait(lambda: waiting.run.finish("succeeded", "done"))
    assert status.exit_code == 100
    assert status.reason is not None
    assert keys.BEST in status.reason
    assert waiting.now >= GRACE


@pytest.mark.parametrize("damaged", [b"{", b"{}", b"[]"])
def test_a_success_with_a_corrupt_pointer_fails(waiting: Waiting, damaged: bytes) -> None:
    waiting.run.store.put(keys.BEST, damaged)
    status = waiting.wait(lambda: waiting.run.finish("succeeded", "done"))
    assert status.exit_code == 100
    assert status.reason is not None
    assert f"no intact {keys.BEST}" in status.reason


def test_a_success_is_not_confirmed_while_the_store_is_unreachable(waiting: Waiting) -> None:
    waiting.store.away = True
    waiting.cluster.put(PYTORCHJOBS, job("Succeeded"))
    back = [*[lambda: None] * 60, waiting.store_is_back, waiting.succeed]
    assert waiting.wait(*back).exit_code == 0


def test_a_late_delta_counts(waiting: Waiting) -> None:
    assert waiting.wait(lambda: waiting.run.finish("succeeded", "done"), waiting.succeed).exit_code == 0
    assert waiting.troubles


def test_a_vanished_run_fails_after_the_grace_period(waiting: Waiting) -> None:
    status = waiting.wait(waiting.forget)
    assert (status.phase, status.exit_code) == ("failed", 100)
    assert "resume" in str(as_error(status))
    assert waiting.now >= GRACE


def test_a_run_resumed_meanwhile_is_not_lost(waiting: Waiting) -> None:
    status = waiting.wait(
        waiting.forget, lambda: None, lambda: waiting.cluster.put(PYTORCHJOBS, job("Running")), waiting.succeed
    )
    assert "lost" in waiting.phases
    assert status.exit_code == 0
