"""Resume finished runs, with a real object store and an in-memory cluster."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cpmbee_job.errors import RefusedError, RejectedError, UsageError
from cpmbee_job.launch.kube.protocol import PYTORCHJOBS
from cpmbee_job.launch.lifecycle.resume import Resumption, resume
from cpmbee_job.launch.lifecycle.submit import Submission
from cpmbee_job.launch.runs.find import find_run
from cpmbee_job.run import keys
from cpmbee_job.spec import StorageSpec
from tests.fake_cluster import FakeCluster
from tests.integration.submitting import Died, DyingCluster, jobs, object_keys, run_of, submit


def resumed(submission: Submission, cluster: FakeCluster, storage: StorageSpec, *overrides: str) -> Resumption:
    found = find_run(submission.found.url, cluster, storage=storage)
    return resume(found, cluster, overrides)


def end(submission: Submission, cluster: FakeCluster, storage: StorageSpec, state: str = "failed") -> None:
    run_of(submission, storage).finish(state, "its reason")
    condition = {"type": "Failed", "status": "True", "message": "it failed"}
    cluster.objects[PYTORCHJOBS][submission.found.job_name]["status"] = {"conditions": [condition]}


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_resumed_run_has_a_new_job_and_no_result(job, cluster, s3_storage, state):
    first = submit(job(), cluster)
    end(first, cluster, s3_storage, state)
    before = jobs(cluster)[0]["metadata"]["uid"]
    done = resumed(first, cluster, s3_storage, "workers.memory=32Gi")
    assert done.resumed
    run = run_of(first, s3_storage)
    assert run.result() is None
    assert run.spec.workers.memory == "32Gi"
    (there,) = jobs(cluster)
    assert there["metadata"]["uid"] != before
    assert there["metadata"]["name"] == first.found.job_name


def test_a_resume_with_different_training_is_refused_and_names_the_difference(job, cluster, s3_storage):
    first = submit(job(), cluster)
    end(first, cluster, s3_storage)
    with pytest.raises(RefusedError, match=r"train\.lr: 0\.0001 -> 0\.1"):
        resumed(first, cluster, s3_storage, "train.lr=0.1")
    assert len(jobs(cluster)) == 1
    assert run_of(first, s3_storage).result() is not None


def test_a_resume_cannot_move_the_run(job, cluster, s3_storage):
    first = submit(job(), cluster)
    end(first, cluster, s3_storage)
    with pytest.raises(UsageError, match="cannot change"):
        resumed(first, cluster, s3_storage, "output=s3://elsewhere/")


def test_resume_does_not_change_an_active_run(job, cluster, s3_storage):
    first = submit(job(), cluster)
    assert not resumed(first, cluster, s3_storage).resumed
    assert len(jobs(cluster)) == 1


def test_a_succeeded_run_is_not_resumed(job, cluster, s3_storage):
    first = submit(job(), cluster)
    run_of(first, s3_storage).finish("succeeded", "finished")
    with pytest.raises(RefusedError, match="already succeeded"):
        resumed(first, cluster, s3_storage)


def test_a_run_whose_job_is_missing_is_resumed(job, cluster, s3_storage):
    first = submit(job(), cluster)
    run_of(first, s3_storage).store.put(keys.attempt_key(1), b"{}")
    cluster.objects.clear()
    assert resumed(first, cluster, s3_storage).resumed
    assert len(jobs(cluster)) == 1


def test_a_rejected_resume_leaves_the_run_as_it_was(job, cluster, s3_storage):
    first = submit(job(), cluster)
    end(first, cluster, s3_storage)
    cluster.refusals["create", PYTORCHJOBS] = RejectedError("quota")
    with pytest.raises(RejectedError):
        resumed(first, cluster, s3_storage, "workers.memory=900Gi")
    run = run_of(first, s3_storage)
    assert run.result() is not None
    assert run.spec.workers.memory == "16Gi"
    cluster.refusals.clear()
    assert resumed(first, cluster, s3_storage).resumed


@pytest.mark.parametrize("after", [False, True])
def test_a_resume_interrupted_around_the_creation_of_the_job_is_completed(job, s3_storage, after):
    cluster = DyingCluster(after=after)
    cluster.after = None
    first = submit(job(), cluster)
    run_of(first, s3_storage).store.put(keys.attempt_key(1), b"{}")
    end(first, cluster, s3_storage)
    cluster.after = after
    with pytest.raises(Died):
        resumed(first, cluster, s3_storage)
    resumed(first, cluster, s3_storage)
    assert len(jobs(cluster)) == 1
    assert submit(job(), cluster).adopted


def test_concurrent_resumes_create_one_job(job, cluster, s3_storage):
    first = submit(job(), cluster)
    end(first, cluster, s3_storage)
    start = threading.Barrier(4)

    def one(_: int) -> Resumption:
        found = find_run(first.found.url, cluster, storage=s3_storage)
        start.wait()
        return resume(found, cluster)

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(one, range(4)))
    assert sum(one.resumed for one in done) == 1
    assert len(jobs(cluster)) == 1
    assert run_of(first, s3_storage).result() is None
    moved = [key for key in object_keys(first.found.url, s3_storage) if key.endswith(".result.json")]
    assert len(moved) == 1
    assert json.loads(run_of(first, s3_storage).store.get(moved[0]))["reason"] == "its reason"


def test_a_run_of_another_namespace_whose_job_is_missing_is_not_resumed_here(job, cluster, s3_storage):
    first = submit(job(), cluster)
    with pytest.raises(RefusedError, match="namespace team"):
        resumed(first, FakeCluster("other"), s3_storage)


def test_a_failed_run_may_move_to_another_namespace(job, cluster, s3_storage):
    first = submit(job(), cluster)
    end(first, cluster, s3_storage)
    other = FakeCluster("other")
    assert resumed(first, other, s3_storage).resumed
    assert run_of(first, s3_storage).spec.cluster.namespace == "other"
    assert len(jobs(other)) == 1
