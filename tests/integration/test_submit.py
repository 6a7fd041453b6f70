"""Submit to an in-memory cluster, with a real object store."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest

from cpmbee_job.errors import (
    ClusterError,
    PreflightError,
    RefusedError,
    RejectedError,
    SpecError,
    StoreError,
    UnreachableError,
)
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import PODS, PYTORCHJOBS, Object
from cpmbee_job.launch.lifecycle.submit import Submission
from cpmbee_job.process import contract
from cpmbee_job.run import keys
from cpmbee_job.store.urls import open_store
from tests.fake_cluster import FakeCluster
from tests.integration.submitting import Died, DyingCluster, jobs, object_keys, run_of, submit


def test_a_submit_uploads_inputs_begins_the_run_and_creates_its_job(job, cluster, bucket, s3_storage):
    done = submit(job(), cluster)
    assert not done.adopted
    spec = run_of(done, s3_storage).spec
    assert spec.model.startswith(f"{bucket}/runs/uploads/")
    assert spec.data.train.endswith("/train.jsonl")
    assert spec.data.eval is not None
    assert object_keys(spec.data.eval, s3_storage) == ["rows.jsonl"]
    assert object_keys(spec.model, s3_storage) == ["config.json", "model.safetensors", "vocab.txt"]
    assert spec.cluster.namespace == "team"
    (manifest,) = jobs(cluster)
    assert manifest["metadata"]["name"] == done.found.job_name
    assert manifest["metadata"]["annotations"][naming.URL_ANNOTATION] == f"{bucket}/runs/{done.found.reference}"


def test_a_second_submit_adopts_the_run_and_moves_nothing(job, cluster):
    first = submit(job(), cluster)
    moved: list[int] = []

    def bar(title: str, total: int) -> Any:
        moved.append(total if title == "upload" else 0)
        return nullcontext(lambda _count: None)

    again = submit(job(), cluster, bar=bar)
    assert (again.adopted, again.found.reference) == (True, first.found.reference)
    assert sum(moved) == 0
    assert len(jobs(cluster)) == 1
    assert again.differences == ()


def test_a_succeeded_run_is_adopted_even_after_its_job_is_deleted(job, cluster, s3_storage):
    first = submit(job(), cluster)
    run_of(first, s3_storage).finish("succeeded", "finished")
    cluster.objects.clear()
    again = submit(job(), cluster)
    assert (again.adopted, again.found.reference) == (True, first.found.reference)
    assert "succeeded" in again.why
    assert jobs(cluster) == []


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_failed_or_cancelled_run_is_refused_naming_resume_and_new(job, cluster, s3_storage, state):
    first = submit(job(), cluster)
    run_of(first, s3_storage).finish(state, "somebody's reason")
    with pytest.raises(RefusedError, match="somebody's reason") as caught:
        submit(job(), cluster)
    assert f"resume {first.found.reference}" in str(caught.value)
    assert "--new" in str(caught.value)


def test_a_run_whose_job_is_missing_is_refused_with_its_url(job, cluster, s3_storage):
    first = submit(job(), cluster)
    run_of(first, s3_storage).store.put(keys.attempt_key(1), b"{}")
    cluster.objects.clear()
    with pytest.raises(RefusedError, match="gone from the cluster") as caught:
        submit(job(), cluster)
    assert f"resume {first.found.url} --endpoint-url {s3_storage.endpoint_url}`" in str(caught.value)


def test_new_begins_the_next_run_and_later_submits_adopt_it(job, cluster):
    first = submit(job(), cluster)
    second = submit(job(), cluster, new=True)
    assert second.found.reference == f"{first.found.reference}-2"
    assert submit(job(), cluster).found.reference == second.found.reference
    assert len(jobs(cluster)) == 2


def test_two_concurrent_submits_with_new_create_one_run_each(job, cluster):
    first = submit(job(), cluster)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: submit(job(), cluster, new=True), range(2)))
    expected = {f"{first.found.reference}-2", f"{first.found.reference}-3"}
    assert {submission.found.reference for submission in done} == expected


def test_a_key_distinguishes_runs_of_the_same_spec(job, cluster):
    assert submit(job(), cluster).found.reference != submit(job(), cluster, key="again").found.reference


def test_different_data_makes_a_different_run(job, cluster, tmp_path):
    first = submit(job(), cluster)
    (tmp_path / "train.jsonl").write_text('{"input": "a", "<ans>": "c"}\n')
    assert submit(job(), cluster).found.reference != first.found.reference


def test_inputs_already_in_the_store_give_the_same_run(job, cluster, s3_storage):
    first = submit(job(), cluster)
    stored = run_of(first, s3_storage).spec
    assert submit(stored, cluster).found.reference == first.found.reference


def test_objects_in_the_store_count_by_their_listing(job, cluster, bucket, s3_storage):
    store = open_store(f"{bucket}/data", s3_storage)
    store.put("train.jsonl", b"{}\n")
    spec = job(f"data.train={bucket}/data/")
    first = submit(spec, cluster)
    assert submit(spec, cluster).found.reference == first.found.reference
    store.put("train.jsonl", b"{} \n")
    assert submit(spec, cluster).found.reference != first.found.reference


def test_eight_concurrent_submits_create_one_run_and_one_job(job, cluster, bucket, s3_storage):
    start = threading.Barrier(8)

    def one(_: int) -> Submission:
        start.wait()
        return submit(job(), cluster)

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(one, range(8)))
    assert len({submission.found.reference for submission in done}) == 1
    assert sum(not submission.adopted for submission in done) == 1
    assert len(jobs(cluster)) == 1
    assert [key for key in object_keys(f"{bucket}/runs", s3_storage) if key.endswith("spec.yaml")] == [
        f"{done[0].found.reference}/spec.yaml"
    ]


def test_a_job_rejected_by_the_cluster_leaves_no_run_behind(job, cluster, bucket, s3_storage):
    cluster.refusals["create", PYTORCHJOBS] = RejectedError("no such field", [("spec.x", "unknown")])
    with pytest.raises(RejectedError):
        submit(job(), cluster)
    assert object_keys(bucket, s3_storage) == []
    cluster.refusals.clear()
    assert not submit(job(), cluster).adopted


def test_a_job_whose_pods_would_be_rejected_is_refused_with_the_key_of_the_spec(job, cluster, bucket, s3_storage):
    path = "spec.terminationGracePeriodSeconds"
    cluster.refusals["create", PODS] = RejectedError("invalid", [(path, "must be greater than 0")])
    with pytest.raises(RejectedError, match=r"cluster\.grace_period: must be greater"):
        submit(job(), cluster)
    assert object_keys(bucket, s3_storage) == []


def test_an_overlay_that_breaks_the_template_is_refused_before_anything_is_uploaded(job, cluster, bucket, s3_storage):
    broken = job("cluster.pod_overlay={spec: {containers: {name: x}}}")
    with pytest.raises(SpecError, match=r"^cluster\.pod_overlay\.spec\.containers: must be a list"):
        submit(broken, cluster)
    assert object_keys(bucket, s3_storage) == []
    assert created(cluster) == 0
    submit(job(), cluster)
    with pytest.raises(SpecError, match=r"^cluster\.pod_overlay\.spec\.containers: "):  # of an existing run too
        submit(broken, cluster)


def test_an_exhausted_quota_is_only_a_warning(job, cluster):
    cluster.refusals["create", PODS] = ClusterError('pods "a" is forbidden: exceeded quota: team, requested: cpu=4')
    told: list[str] = []
    assert not submit(job(), cluster, warn=told.append).adopted
    assert "exceeded quota: team" in told[0]


@pytest.mark.parametrize("after", [False, True])
def test_a_submit_interrupted_around_the_creation_of_the_job_is_completed(job, after):
    cluster = DyingCluster(after=after)
    with pytest.raises(Died):
        submit(job(), cluster)
    again = submit(job(), cluster)
    assert again.adopted
    assert len(jobs(cluster)) == 1
    assert submit(job(), cluster).found.reference == again.found.reference
    assert len(jobs(cluster)) == 1


def test_an_interrupted_submit_is_completed_as_it_began(job):
    cluster = DyingCluster(after=False)
    with pytest.raises(Died):
        submit(job(), cluster)
    again = submit(job("workers.memory=1Gi"), cluster)
    assert again.differences == ('workers.memory: "16Gi", not "1Gi"',)
    pod = jobs(cluster)[0]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["memory"] == "16Gi"


def test_an_interrupted_submit_is_not_completed_in_another_namespace(job):
    with pytest.raises(Died):
        submit(job(), DyingCluster(after=False))
    with pytest.raises(RefusedError, match="namespace team"):
        submit(job(), FakeCluster("other"))


def test_a_submit_interrupted_during_the_uploads_is_completed(job, cluster, bucket, s3_storage):
    done = submit(job(), cluster, dry_run=True)
    assert object_keys(bucket, s3_storage) == []
    assert submit(job(), cluster).found.reference == done.found.reference
    spec = run_of(done, s3_storage).spec
    store = open_store(spec.model, s3_storage)
    store.put("model.safetensors", b"something else")  # simulates corruption
    submit(job(), cluster)
    assert store.get("model.safetensors") == b"the model.safetensors"


def test_an_unreachable_cluster_is_reported_with_the_command_that_resumes_waiting(job, cluster):
    original = cluster.create

    def fails(kind: str, manifest: Object, **how: Any) -> Object:
        if how.get("dry_run"):
            return original(kind, manifest, **how)
        raise UnreachableError("timed out")

    cluster.create = fails
    with pytest.raises(UnreachableError, match="repeat the same command"):
        submit(job(), cluster)


def test_a_dry_run_prints_exactly_the_submitted_manifest_and_writes_nothing(job, cluster, bucket, s3_storage):
    dry = submit(job(), cluster, dry_run=True)
    assert object_keys(bucket, s3_storage) == []
    assert jobs(cluster) == []
    submit(job(), cluster)
    (sent,) = jobs(cluster)
    assert dry.manifest is not None
    assert sent["spec"] == dry.manifest["spec"]
    assert {key: sent["metadata"][key] for key in dry.manifest["metadata"]} == dry.manifest["metadata"]


def test_a_dry_run_of_an_active_run_sends_nothing(job, cluster):
    submit(job(), cluster)
    dry = submit(job(), cluster, dry_run=True)
    assert (dry.adopted, dry.manifest) == (True, None)


def test_differences_that_do_not_affect_training_are_reported(job, cluster):
    submit(job(), cluster)
    again = submit(job("image=example/train:2"), cluster)
    assert again.differences == ('image: "example/train:1", not "example/train:2"',)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("output=file:///tmp/x/", r"^output: .*which pods cannot reach"),
        ("image=null", "^image: missing"),
        ("model=no/", "^model: "),
    ],
)
def test_an_impossible_job_is_refused_before_the_cluster_is_contacted(job, cluster, override, message):
    with pytest.raises(SpecError, match=message):
        submit(job(override), cluster)
    assert cluster.calls == []


def test_data_missing_from_the_store_is_reported_with_its_key(job, cluster, bucket):
    with pytest.raises(PreflightError, match=r"^data\.train: .*no such object or folder"):
        submit(job(f"data.train={bucket}/nothing/"), cluster)


def test_an_invalid_model_folder_in_the_store_is_refused(job, cluster, bucket, s3_storage):
    open_store(f"{bucket}/model", s3_storage).put("vocab.txt", b"x")
    with pytest.raises(Exception, match=r"model: .* no (config|weights)"):
        submit(job(f"model={bucket}/model/"), cluster)


def test_a_job_name_of_another_run_is_refused(job, cluster, bucket, s3_storage):
    inputs = open_store(f"{bucket}/inputs", s3_storage)
    for name in ("vocab.txt", "config.json", "model.safetensors", "rows.jsonl"):
        inputs.put(name, b"x")
    there = [f"model={bucket}/inputs/", f"data.train={bucket}/inputs/rows.jsonl", "data.eval=null"]
    first = submit(job(*there), cluster)
    with pytest.raises(
        RefusedError, match=f"{first.found.job_name} .* belongs to {first.found.url}, not to .*elsewhere.*"
    ) as caught:
        submit(job(*there, f"output={bucket}/elsewhere/"), cluster)
    assert "--key" in str(caught.value)
    assert object_keys(f"{bucket}/elsewhere", s3_storage) == []
    assert not submit(job(*there, f"output={bucket}/elsewhere/"), cluster, key="other").adopted


def test_a_store_reachable_only_from_pods_is_reported_with_the_field_to_set(job, cluster):
    with pytest.raises(StoreError, match="launcher_endpoint_url") as caught:
        submit(job("storage.endpoint_url=http://127.0.0.1:9"), cluster)
    assert caught.value.exit_code == 4


def test_the_launcher_s_own_address_of_the_store_is_used(job, cluster, s3_storage):
    spec = job("storage.endpoint_url=http://127.0.0.1:9", f"storage.launcher_endpoint_url={s3_storage.endpoint_url}")
    assert not submit(spec, cluster).adopted


def test_a_launcher_in_the_cluster_uses_the_endpoint_of_the_pods(job, cluster, s3_storage, monkeypatch):
    monkeypatch.setenv(contract.IN_CLUSTER_ENV, "1")
    of_a_laptop = ["storage.launcher_endpoint_url=http://127.0.0.1:9", "storage.ca_bundle=/home/me/ca.pem"]
    done = submit(job(*of_a_laptop), cluster)
    assert run_of(done, s3_storage).spec.storage.launcher_endpoint_url == "http://127.0.0.1:9"


def created(cluster: FakeCluster) -> int:
    return sum(verb == "create" for verb, _ in cluster.calls)


def test_wrong_credentials_fail_before_anything_is_created(job, cluster, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError) as caught:
        submit(job(), cluster)
    assert caught.value.exit_code == 4
    assert "wrong" not in str(caught.value).replace("credentials are wrong", "")
    assert created(cluster) == 0
