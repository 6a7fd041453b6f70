"""Which requests describe a run, and what happens if they are refused."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from cpmbee_job import documents
from cpmbee_job.errors import ClusterError, UnreachableError
from cpmbee_job.launch.kube.protocol import EVENTS, NODES, PODS, PYTORCHJOBS, WORKLOADS
from cpmbee_job.launch.runs.find import FoundRun, find_run, job_labels, job_url
from cpmbee_job.launch.runs.observe import observe
from cpmbee_job.run import keys
from tests.fake_cluster import FakeCluster
from tests.unit.launch.runs.test_find import ID, add_job, begin
from tests.unit.launch.runs.test_status import case


def cluster_of(name: str) -> tuple[FakeCluster, FoundRun]:
    """Return a cluster with the objects of a case, and their run, whose object store cannot be read."""
    seen, cluster = case(name), FakeCluster("sad")
    cluster.put(PYTORCHJOBS, seen["job"])
    for pod in seen["pods"]:
        cluster.put(PODS, pod)
    for number, event in enumerate(seen["events"]):
        cluster.put(EVENTS, event | {"metadata": {"name": f"event-{number}"}})
    job = seen["job"]
    return cluster, FoundRun(*job_labels(job), job_url(job), None, job, "no credentials", None)


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide this machine's credentials for S3."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nothing")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nothing")


def test_a_healthy_run_takes_two_requests() -> None:
    cluster, found = cluster_of("good")
    assert observe(found, cluster).phase == "running"
    assert cluster.calls == [("get", f"{PYTORCHJOBS}/good-{ID}"), ("list", PODS)]


def test_512_waiting_workers_take_three_requests() -> None:
    cluster, found = cluster_of("bad-image")
    worker = case("bad-image")["pods"][0]
    for index in range(1, 512):
        name = f"bad-image-{ID}-worker-{index}"
        labels = worker["metadata"]["labels"] | {"training.kubeflow.org/replica-index": str(index)}
        cluster.put(PODS, worker | {"metadata": {"name": name, "labels": labels}})
    run = observe(found, cluster)
    assert run.problems[0].startswith("512 workers (0, 1, 2, ...): cannot pull image registry.example/nobody/nothing:7")
    assert [verb for verb, _ in cluster.calls] == ["get", "list", "list"]


def test_reads_events_if_pods_cannot_be_created() -> None:
    cluster, found = cluster_of("quota")
    assert "exceeded quota: gpus" in observe(found, cluster).problems[0]
    assert cluster.calls[2:] == [("list", EVENTS)]


def test_finds_an_eviction_in_the_events() -> None:
    cluster, found = cluster_of("evict")
    assert "was Evicted" in observe(found, cluster).problems[0]


def test_denied_events_are_a_note() -> None:
    cluster, found = cluster_of("quota")
    cluster.refusals["list", EVENTS] = ClusterError("events is forbidden: User may not list")
    run = observe(found, cluster)
    assert run.phase == "running"
    assert "events: events is forbidden: User may not list" in run.notes


def test_reads_the_workload_of_kueue() -> None:
    cluster, found = cluster_of("kueue")
    labels = {"kueue.x-k8s.io/job-uid": case("kueue")["job"]["metadata"]["uid"]}
    conditions = [{"type": "QuotaReserved", "status": "False", "message": "no quota left"}]
    cluster.put(WORKLOADS, {"metadata": {"name": "w", "labels": labels}, "status": {"conditions": conditions}})
    assert observe(found, cluster).problems == ("waits in the Kueue LocalQueue team-a: no quota left",)


def test_reads_the_node_of_a_silent_pod() -> None:
    cluster, found = cluster_of("good")
    for pod in cluster.objects[PODS].values():
        ready = next(one for one in pod["status"]["conditions"] if one["type"] == "Ready")
        ready["status"] = "False"
    condition = {"type": "Ready", "status": "Unknown", "message": "Kubelet stopped posting node status."}
    cluster.put(NODES, {"metadata": {"name": "node-1"}, "status": {"conditions": [condition]}})
    run = observe(found, cluster)
    assert "node node-1 does not respond" in run.problems[0]
    assert "Kubelet stopped posting node status." in run.problems[0]
    assert [call for call in cluster.calls if NODES in call[1]] == [("get", f"{NODES}/node-1")]


def test_an_unreachable_cluster_is_a_note() -> None:
    cluster, found = cluster_of("good")
    cluster.failures = [UnreachableError("it does not answer")]
    run = observe(found, cluster)
    assert (run.phase, run.ended) == ("lost", False)
    assert "the cluster: it does not answer" in run.notes


def test_reads_heartbeat_and_result(tmp_path: Path) -> None:
    run, cluster = begin(tmp_path), FakeCluster()
    add_job(cluster, run.url)
    heartbeat = {"state": "running", "step": 3, "total_steps": 4, "updated_at": datetime.now(UTC).isoformat()}
    run.store.put(keys.STATUS, documents.to_json(heartbeat))
    assert observe(find_run(f"ccpm/{ID}", cluster), cluster).progress == 0.75
    run.finish("failed", "data.jsonl:7: no <ans>", exit_code=3)
    seen = observe(find_run(f"ccpm/{ID}", cluster), cluster)
    assert (seen.phase, seen.exit_code, seen.notes) == ("failed", 3, ())


def test_reads_a_run_that_begins_after_it_was_found(tmp_path: Path) -> None:
    cluster = FakeCluster()
    add_job(cluster, f"{tmp_path}/ccpm/{ID}")
    found = find_run(f"ccpm/{ID}", cluster)
    begin(tmp_path).finish("cancelled", "by request")
    assert observe(found, cluster).phase == "cancelled"


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b'{"step": "many", "best": 3, "updated_at": 7}'])
def test_a_malformed_heartbeat_is_ignored(tmp_path: Path, text: bytes) -> None:
    run = begin(tmp_path)
    run.store.put(keys.STATUS, text)
    assert observe(find_run(run.url, None), None).step is None


def test_a_local_run_requires_no_cluster(tmp_path: Path) -> None:
    run = begin(tmp_path)
    seen = observe(find_run(run.url, None), None)
    assert (seen.phase, seen.ended, seen.notes) == ("preparing", False, ())
