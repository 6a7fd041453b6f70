import pytest

from cpmbee_job.errors import RefusedError, UnfinishedError, UnreachableError
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import JOBS, PODS, PYTORCHJOBS
from cpmbee_job.launch.lifecycle.cluster_jobs import create_job, get_job, remove_job
from tests.fake_cluster import FakeCluster

LABELS = {naming.NAME_LABEL: "a", naming.RUN_LABEL: "r1"}
URL = "s3://o/a/r1"


@pytest.fixture
def cluster():
    cluster = FakeCluster("team")
    annotations = {naming.URL_ANNOTATION: URL}
    cluster.put(PYTORCHJOBS, {"metadata": {"name": "a-r1", "uid": "u1", "labels": LABELS, "annotations": annotations}})
    return cluster


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


@pytest.mark.parametrize("kind", [PYTORCHJOBS, JOBS])
def test_a_job_is_created_once(kind):
    cluster = FakeCluster("team")
    manifest = {"metadata": {"name": "a-r1", "annotations": {naming.URL_ANNOTATION: URL}}}
    assert create_job(cluster, manifest, URL, kind=kind)
    assert not create_job(cluster, manifest, URL, kind=kind)
    assert get_job(cluster, "a-r1", URL, kind=kind) is not None


def test_the_job_of_another_url_is_refused(cluster):
    with pytest.raises(RefusedError, match=f"belongs to {URL}, not to s3://elsewhere"):
        get_job(cluster, "a-r1", "s3://elsewhere")
    with pytest.raises(RefusedError, match=f"belongs to {URL}, not to s3://elsewhere"):
        create_job(cluster, {"metadata": {"name": "a-r1"}}, "s3://elsewhere")


def test_a_lost_response_asks_to_repeat_the_command(cluster):
    cluster.refusals["create", PYTORCHJOBS] = UnreachableError("timed out")
    with pytest.raises(UnreachableError, match="repeat the same command"):
        create_job(cluster, {"metadata": {"name": "b"}}, URL)


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
