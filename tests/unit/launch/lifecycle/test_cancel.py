import pytest

from cpmbee_job.errors import ClusterError, RefusedError, StoreError
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import PYTORCHJOBS
from cpmbee_job.launch.lifecycle.cancel import cancel
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
