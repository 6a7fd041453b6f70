"""Runs are found by name or URL, in the cluster or in the object store."""

from pathlib import Path

import pytest

from cpmbee_job.errors import ClusterError, NotFoundError, StoreError, UnreachableError, UsageError
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import PYTORCHJOBS, Object
from cpmbee_job.launch.runs.find import FoundRun, find_at_home, find_run, job_storage
from cpmbee_job.process import contract
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec, parse_spec
from tests.fake_cluster import FakeCluster

ID = "0123456789ab"


def begin(output: Path, run_id: str = ID, name: str = "ccpm", more: str = "") -> Run:
    text = f"name: {name}\nmodel: m/\ndata: {{train: t.jsonl}}\noutput: {output}\n{more}"
    return Run.start(parse_spec(text, source="job.yaml"), run_id)


def add_job(cluster: FakeCluster, url: str, run_id: str = ID, name: str = "ccpm", storage: str | None = None) -> Object:
    labels = {**naming.MANAGED_BY, naming.NAME_LABEL: name, naming.RUN_LABEL: run_id}
    metadata = {
        "name": naming.job_name(name, run_id),
        "labels": labels,
        "annotations": {naming.URL_ANNOTATION: url},
    }
    env = [{"name": contract.STORAGE_ENV, "value": storage}] if storage is not None else []
    template = {"spec": {"containers": [{"name": "pytorch", "env": env}]}}
    spec = {"pytorchReplicaSpecs": {"Worker": {"replicas": 1, "template": template}}}
    return cluster.put(PYTORCHJOBS, {"metadata": metadata, "spec": spec})


def test_the_job_names_the_folder_of_its_run(tmp_path: Path) -> None:
    run, cluster = begin(tmp_path), FakeCluster()
    add_job(cluster, run.url)
    found = find_run(f"ccpm/{ID}", cluster)
    assert found.run is not None
    assert (found.run.url, found.url, found.store_problem, found.cluster_problem) == (run.url, run.url, None, None)
    assert found.job is not None
    assert cluster.calls == [("get", f"{PYTORCHJOBS}/ccpm-{ID}")]


def test_finds_a_run_in_the_store_after_its_job_was_deleted(tmp_path: Path) -> None:
    run = begin(tmp_path)
    found = find_run(f"ccpm/{ID}", FakeCluster(), output=str(tmp_path))
    assert (found.url, found.job) == (run.url, None)
    assert found.run is not None


def test_finds_the_job_in_the_namespace_that_it_was_submitted_to(tmp_path: Path) -> None:
    run, home = begin(tmp_path, more="cluster: {namespace: team}\n"), FakeCluster("team")
    add_job(home, run.url)
    found, cluster = find_at_home(run.url, FakeCluster("default"), {"team": home}.__getitem__)
    assert (found.job is not None, cluster) == (True, home)


def test_a_job_with_another_output_in_that_namespace_is_another_run(tmp_path: Path) -> None:
    run, home = begin(tmp_path, more="cluster: {namespace: team}\n"), FakeCluster("team")
    add_job(home, f"{run.url}x")
    assert find_at_home(run.url, FakeCluster("default"), {"team": home}.__getitem__)[0].job is None


def test_finds_a_run_by_url_without_a_cluster(tmp_path: Path) -> None:
    run = begin(tmp_path)
    found = find_run(f"{run.url}/", None)
    assert (found.name, found.run_id, found.url) == ("ccpm", ID, run.url)


def test_finds_a_run_by_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    assert find_run(f"runs/ccpm/{ID}", None).run_id == ID
    assert find_run(f"./runs/ccpm/{ID}", None).run_id == ID


def test_an_unreachable_cluster_does_not_hide_the_store(tmp_path: Path) -> None:
    begin(tmp_path)
    cluster = FakeCluster()
    cluster.failures = [UnreachableError("it does not answer")]
    found = find_run(f"ccpm/{ID}", cluster, output=str(tmp_path))
    assert found.run is not None
    assert found.cluster_problem == "it does not answer"


def test_an_unreachable_store_does_not_hide_the_cluster(tmp_path: Path) -> None:
    (tmp_path / "ccpm").write_text("a file where a folder should be")
    cluster = FakeCluster()
    add_job(cluster, f"{tmp_path}/ccpm/{ID}")
    found = find_run(f"ccpm/{ID}", cluster)
    assert found.run is None
    assert found.job is not None
    assert "a file has the name of a folder" in str(found.store_problem)


def test_finds_a_run_that_no_pod_has_begun(tmp_path: Path) -> None:
    cluster = FakeCluster()
    add_job(cluster, f"{tmp_path}/ccpm/{ID}")
    found = find_run(f"ccpm/{ID}", cluster)
    assert (found.run, found.store_problem) == (None, None)


def test_fails_if_neither_cluster_nor_store_can_be_read(tmp_path: Path) -> None:
    cluster = FakeCluster()
    cluster.failures = [ClusterError("pytorchjobs is forbidden")]
    with pytest.raises(ClusterError, match=r"forbidden(.|\n)*--output"):
        find_run(f"ccpm/{ID}", cluster)
    (tmp_path / "ccpm").write_text("")
    with pytest.raises(StoreError, match="a file has the name of a folder"):
        find_run(f"ccpm/{ID}", None, output=str(tmp_path))


def test_a_unique_prefix_of_the_id_is_enough() -> None:
    cluster = FakeCluster()
    add_job(cluster, "s3://b/runs/ccpm/0123", "0123456789ab")
    add_job(cluster, "s3://b/runs/ccpm/ff23", "ff23456789ab")
    assert find_run("ccpm/ff", cluster).run_id == "ff23456789ab"


def test_the_name_is_enough_for_an_only_run(tmp_path: Path) -> None:
    begin(tmp_path)
    assert find_run("ccpm", FakeCluster(), output=str(tmp_path)).run_id == ID


def test_an_ambiguous_reference_is_an_error_with_the_matches(tmp_path: Path) -> None:
    begin(tmp_path, "0123456789ab")
    begin(tmp_path, "0123456789ab-2")
    assert find_run("ccpm/0123456789ab", None, output=str(tmp_path)).run_id == "0123456789ab"
    with pytest.raises(UsageError, match="ccpm/01 is ambiguous: ccpm/0123456789ab, ccpm/0123456789ab-2"):
        find_run("ccpm/01", None, output=str(tmp_path))


def test_an_unknown_id_is_an_error_with_similar_ids(tmp_path: Path) -> None:
    begin(tmp_path, "0123456789ab")
    cluster = FakeCluster()
    add_job(cluster, "s3://b/runs/ccpm/ff23", "ff23456789ab")
    with pytest.raises(NotFoundError, match=r"no such run in namespace default or under .*\n.*existing: 0123456789ab"):
        find_run("ccpm/0123456789ac", cluster, output=str(tmp_path))


def test_an_unknown_name_is_an_error_with_similar_names(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(NotFoundError, match="existing: ccpm"):
        find_run("cpmc/01", None, output=str(tmp_path))


def test_an_unknown_url_is_an_error_with_similar_ids(tmp_path: Path) -> None:
    run = begin(tmp_path)
    with pytest.raises(NotFoundError, match=f"existing: {ID}"):
        find_run(f"{run.url}c", None)


@pytest.mark.parametrize("reference", ["CCPM/1", "", "a b/1", "s3://x", "/", "/runs"])
def test_an_invalid_reference_is_an_error(reference: str) -> None:
    with pytest.raises((UsageError, NotFoundError)):
        find_run(reference, FakeCluster())


def test_a_job_whose_truncated_name_is_the_same_is_another_run() -> None:
    cluster = FakeCluster()
    job = add_job(cluster, "s3://b/runs/other", name="a" * 40)
    job["metadata"]["labels"][naming.NAME_LABEL] = "a" * 39
    with pytest.raises(NotFoundError):
        find_run(f"{'a' * 40}/{ID}", cluster)


def test_uses_the_storage_of_the_job_as_this_machine_reaches_it() -> None:
    stored = StorageSpec(endpoint_url="http://s3.pods:8333", launcher_endpoint_url="http://host:1", ca_bundle="/etc/ca")
    job = add_job(FakeCluster(), "s3://b/runs/a/1", storage=stored.model_dump_json())
    assert job_storage(job, StorageSpec()).endpoint_url == "http://host:1"
    assert job_storage(job, StorageSpec()).ca_bundle is None
    assert job_storage(job, StorageSpec(endpoint_url="http://mine:2")).endpoint_url == "http://mine:2"


@pytest.mark.parametrize("text", ["", "[]", '{"endpoint_url": 7}', '{"of_a_newer_version": 1, "region": "x"}'])
def test_an_invalid_storage_of_the_job_is_ignored(text: str) -> None:
    job = add_job(FakeCluster(), "s3://b/runs/a/1", storage=text)
    assert job_storage(job, StorageSpec()).endpoint_url is None


def test_a_run_without_a_job_is_named_by_its_url():
    found = FoundRun("a", "r1", "s3://o/a/r1", None, None, storage=StorageSpec(endpoint_url="http://s3:1"))
    assert found.arguments("team") == "a/r1 -n team"
    assert found.arguments(None) == "s3://o/a/r1 --endpoint-url http://s3:1"
