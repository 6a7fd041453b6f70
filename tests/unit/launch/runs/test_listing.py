"""Many runs are listed with few requests."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from cpmbee_job import documents
from cpmbee_job.errors import ClusterError, NotFoundError, SpecError
from cpmbee_job.launch.kube.protocol import PYTORCHJOBS, Object
from cpmbee_job.launch.runs.listing import list_runs
from cpmbee_job.run import keys
from tests.fake_cluster import FakeCluster
from tests.unit.launch.runs.test_find import ID, add_job, begin


def add(cluster: FakeCluster, run_id: str, *conditions: str, url: str = "", **metadata: str) -> Object:
    job = add_job(cluster, url or f"s3://b/runs/ccpm/{run_id}", run_id)
    job["metadata"] |= metadata
    job["status"] = {"conditions": [{"type": kind, "status": "True", "message": f"it {kind}"} for kind in conditions]}
    return job


def test_500_runs_take_one_request_and_none_to_the_store() -> None:
    cluster = FakeCluster()
    for number in range(500):
        add(cluster, f"{number:012x}", "Created", "Running")
    listing = list_runs(cluster, limit=50)
    assert cluster.calls == [("list", PYTORCHJOBS)]
    assert (len(listing.runs), listing.total) == (50, 500)


def test_the_newest_runs_come_first() -> None:
    cluster = FakeCluster()
    add(cluster, "a", creationTimestamp="2026-01-01T00:00:00Z")
    add(cluster, "c", creationTimestamp="2026-03-01T00:00:00Z")
    add(cluster, "b", creationTimestamp="2026-02-01T00:00:00Z")
    assert [run.run_id for run in list_runs(cluster).runs] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("conditions", "phase"),
    [
        ((), "pending"),
        (("Created",), "pending"),
        (("Created", "Running"), "running"),
        (("Created", "Failed", "Running"), "failed"),
        (("Created", "Running", "Succeeded"), "succeeded"),
    ],
)
def test_the_phase_is_that_of_the_job(conditions: tuple[str, ...], phase: str) -> None:
    cluster = FakeCluster()
    add(cluster, ID, *conditions)
    (run,) = list_runs(cluster).runs
    assert run.phase == phase
    assert run.reason == ("it Failed" if phase == "failed" else None)


def test_a_run_that_waits_for_kueue_is_queued() -> None:
    cluster = FakeCluster()
    job = add(cluster, ID, "Created")
    job["spec"]["runPolicy"] = {"suspend": True}
    job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "team-a"
    assert list_runs(cluster).runs[0].phase == "queued"


def test_merges_the_runs_of_the_store(tmp_path: Path) -> None:
    cluster = FakeCluster()
    done, here, lost = begin(tmp_path, "aa"), begin(tmp_path, "bb"), begin(tmp_path, "cc", name="other")
    (tmp_path / "prepared" / "0123").mkdir(parents=True)
    (tmp_path / "ccpm" / "no-run").mkdir()
    done.finish("succeeded", "all epochs", steps=7)
    heartbeat = {"state": "running", "step": 3, "total_steps": 9, "loss": 0.5, "updated_at": "2026-01-01T00:00:00Z"}
    here.store.put(keys.STATUS, documents.to_json(heartbeat))
    add(cluster, "bb", "Created", "Running", url=here.url)
    listing = list_runs(cluster, output=str(tmp_path))
    assert {run.url: run.phase for run in listing.runs} == {
        done.url: "succeeded",
        here.url: "running",
        lost.url: "lost",
    }
    by_url = {run.url: run for run in listing.runs}
    assert (by_url[here.url].step, by_url[here.url].total_steps, by_url[here.url].loss) == (3, 9, 0.5)
    assert by_url[done.url].step == 7
    assert listing.notes == ()


def test_a_run_with_a_fresh_heartbeat_is_running(tmp_path: Path) -> None:
    heartbeat = {"state": "running", "updated_at": datetime.now(UTC).isoformat()}
    begin(tmp_path).store.put(keys.STATUS, documents.to_json(heartbeat))
    assert list_runs(None, output=str(tmp_path)).runs[0].phase == "running"


def test_a_cluster_that_refuses_does_not_hide_the_store(tmp_path: Path) -> None:
    begin(tmp_path).finish("cancelled", "by request")
    cluster = FakeCluster()
    cluster.refusals["list", PYTORCHJOBS] = ClusterError("pytorchjobs is forbidden")
    listing = list_runs(cluster, output=str(tmp_path))
    assert [run.phase for run in listing.runs] == ["cancelled"]
    assert listing.notes == ("the cluster: pytorchjobs is forbidden",)


def test_a_store_that_refuses_does_not_hide_the_cluster(tmp_path: Path) -> None:
    cluster = FakeCluster()
    add(cluster, ID)
    (tmp_path / "ccpm").mkdir()
    (tmp_path / "ccpm" / ID).mkdir()
    (tmp_path / "ccpm" / ID / keys.STATUS).write_text("not JSON")
    listing = list_runs(cluster, output=str(tmp_path))
    assert len(listing.runs) == 1
    assert listing.notes[0].startswith(f"ccpm/{ID}: ")


def test_fails_if_nothing_can_be_read() -> None:
    cluster = FakeCluster()
    cluster.refusals["list", PYTORCHJOBS] = ClusterError("pytorchjobs is forbidden")
    with pytest.raises(ClusterError, match="forbidden"):
        list_runs(cluster)
    with pytest.raises(SpecError, match="unsupported scheme"):
        list_runs(cluster, output="gs://bucket/runs")


def test_a_missing_operator_is_an_error() -> None:
    cluster = FakeCluster()
    cluster.refusals["list", PYTORCHJOBS] = NotFoundError("404 page not found")
    with pytest.raises(ClusterError, match="the training operator is not installed"):
        list_runs(cluster)


def test_a_run_in_another_namespace_is_not_called_lost_without_a_reason(tmp_path: Path) -> None:
    begin(tmp_path, "aa", more="cluster: {namespace: team}\n")
    assert list_runs(FakeCluster("team"), output=str(tmp_path)).runs[0].reason is None
    (run,) = list_runs(FakeCluster("default"), output=str(tmp_path)).runs
    assert run.reason == "not read: it was submitted to namespace team"
