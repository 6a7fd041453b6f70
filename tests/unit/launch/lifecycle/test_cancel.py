import pytest

from cpmbee_job.errors import ClusterError, RefusedError, StoreError, UnfinishedError, UnreachableError
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import PODS, PYTORCHJOBS
from cpmbee_job.launch.lifecycle.cancel import cancel
from cpmbee_job.launch.lifecycle.cluster_jobs import remove_job
from cpmbee_job.launch.runs.find import FoundRun
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run
from cpmbee_job.spec import parse_spec
from tests.fake_cluster import FakeCluster

LABELS = {naming.NAME_LABEL: "a", naming.RUN_LABEL: "r1"}


@pytest.fixture
def run(tmp_path):
    text = f"name: a\nmodel: m/\ndata: {{train: t.jsonl}}\noutput: {tmp_path}\ncluster: {{namespace: team}}\n"
    return Run.start(parse_spec(text, source="job.yaml"), "r1")


@pytest.fixture
def cluster():
    cluster = FakeCluster("team")
    cluster.put(PYTORCHJOBS, {"metadata": {"name": "a-r1", "uid": "u1", "labels": LABELS}})
    return cluster


def found(run, cluster, **fields):
    return FoundRun("a", "r1", run.url, run, cluster.objects[PYTORCHJOBS].get("a-r1"), **fields)


def add_pod(cluster, uid="u1"):
    owner = {"kind": "PyTorchJob", "uid": uid}
    cluster.put(PODS, {"metadata": {"name": "a-r1-worker-0", "labels": LABELS, "ownerReferences": [owner]}})


class Time:
    """A clock that advances only in pauses; each pause calls `happens`."""

    def __init__(self, happens=lambda: None):
        self.now, self.happens = 0.0, happens

    def pause(self, seconds):
        self.now += seconds
        self.happens()

    def how(self):
        return {"clock": lambda: self.now, "pause": self.pause}


def test_cancel_writes_the_result_deletes_the_job_and_keeps_the_store(run, cluster):
    cancel(found(run, cluster), cluster, "cancelled by me")
    assert run.result()["state"] == "cancelled"
    assert run.result()["reason"] == "cancelled by me"
    assert cluster.objects[PYTORCHJOBS] == {}
    assert run.store.info(keys.SPEC) is not None


def test_an_interrupted_cancel_is_completed(run, cluster):
    run.finish("cancelled", "cancelled by me")
    cancel(found(run, cluster), cluster, "again")
    assert cluster.objects[PYTORCHJOBS] == {}
    assert run.result()["reason"] == "cancelled by me"


def test_a_run_without_a_job_is_cancelled(run, cluster):
    cluster.objects[PYTORCHJOBS].clear()
    assert "no PyTorchJob" in cancel(found(run, cluster), cluster, "why")
    assert run.result()["state"] == "cancelled"


@pytest.mark.parametrize("state", ["succeeded", "failed"])
def test_an_ended_run_is_refused_with_its_reason(run, cluster, state):
    run.finish(state, "its own reason")
    with pytest.raises(RefusedError, match=f"already {state}: its own reason"):
        cancel(found(run, cluster), cluster, "why")
    assert "a-r1" in cluster.objects[PYTORCHJOBS]


def test_without_the_store_the_job_is_kept(run, cluster):
    blind = FoundRun("a", "r1", run.url, None, cluster.objects[PYTORCHJOBS]["a-r1"], store_problem="no credentials")
    with pytest.raises(StoreError, match="no credentials") as caught:
        cancel(blind, cluster, "why")
    assert "kubectl delete pytorchjob a-r1" in str(caught.value)
    assert "a-r1" in cluster.objects[PYTORCHJOBS]


def test_without_the_cluster_no_result_is_written(run, cluster):
    with pytest.raises(ClusterError, match="forbidden"):
        cancel(FoundRun("a", "r1", run.url, run, None, cluster_problem="forbidden"), cluster, "why")
    assert run.result() is None


def test_a_run_in_another_namespace_is_refused(run):
    elsewhere = FakeCluster("other")
    with pytest.raises(RefusedError, match="namespace team"):
        cancel(FoundRun("a", "r1", run.url, run, None), elsewhere, "why")
    assert run.result() is None


def test_remove_job_waits_for_the_pods(cluster):
    add_pod(cluster)
    time = Time(lambda: cluster.objects[PODS].clear())
    remove_job(cluster, cluster.objects[PYTORCHJOBS]["a-r1"], timeout=60, **time.how())
    assert time.now > 0


def test_remaining_pods_are_named_after_the_timeout(cluster):
    add_pod(cluster)
    with pytest.raises(UnfinishedError, match=r"after 60 s .*pod a-r1-worker-0"):
        remove_job(cluster, cluster.objects[PYTORCHJOBS]["a-r1"], timeout=60, **Time().how())


def test_another_job_with_the_same_name_is_kept(cluster):
    old = {"metadata": {"name": "a-r1", "uid": "older", "labels": LABELS}}
    add_pod(cluster, uid="u1")
    remove_job(cluster, old, timeout=60, **Time().how())
    assert cluster.objects[PYTORCHJOBS]["a-r1"]["metadata"]["uid"] == "u1"


def test_an_unreachable_api_does_not_end_the_wait(cluster):
    add_pod(cluster)
    job = cluster.objects[PYTORCHJOBS]["a-r1"]

    def happens():
        cluster.refusals.clear()
        cluster.objects[PODS].clear()

    cluster.refusals["list", PODS] = UnreachableError("timed out")
    remove_job(cluster, job, timeout=60, **Time(happens).how())
