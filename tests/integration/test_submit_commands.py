"""`submit`, `resume`, `cancel` and `fetch` as a user runs them, against a real object store and an API server."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from cpmbee_job import documents
from cpmbee_job.launch.kube.protocol import PYTORCHJOBS
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.urls import open_store
from tests.fake_cluster import FakeCluster
from tests.integration.conftest import CREDENTIALS
from tests.integration.jobs import Outcome, cli, make_job, start
from tests.integration.kubernetes_api import kubernetes_api
from tests.integration.submitting import jobs, make_job_file, object_keys

RunCli = Callable[..., Outcome]


@pytest.fixture
def kubeconfig(cluster: FakeCluster, tmp_path: Path) -> Iterator[Path]:
    with kubernetes_api(cluster, tmp_path) as path:
        yield path


@pytest.fixture
def spec(tmp_path: Path, bucket: str, s3_storage: StorageSpec) -> Path:
    return make_job_file(tmp_path, bucket, s3_storage)


@pytest.fixture
def run_cli(kubeconfig: Path) -> RunCli:
    def run(*arguments: object) -> Outcome:
        done = cli(*arguments, env={"KUBECONFIG": str(kubeconfig)})
        for secret in (CREDENTIALS["AWS_SECRET_ACCESS_KEY"], "secret-token"):
            assert secret not in done.out + done.err
        return done

    return run


def test_stdout_has_the_run_and_stderr_the_next_commands(run_cli: RunCli, spec: Path, cluster: FakeCluster) -> None:
    done = run_cli("submit", spec)
    assert done.code == 0, done.err
    (job,) = jobs(cluster)
    reference = done.out.strip()
    assert job["metadata"]["name"] == reference.replace("/", "-")
    assert f"cpmbee-job status {reference}" in done.err
    again = run_cli("submit", spec, "--json", "--set", "workers.memory=1Gi")
    document = json.loads(again.out)
    assert (document["run"], document["adopted"], document["namespace"]) == (reference, True, "team")
    assert document["differences"] == ['workers.memory: "16Gi", not "1Gi"']
    assert document["differences"][0] in again.err


def test_a_dry_run_prints_the_manifest_and_nothing_else(
    run_cli: RunCli, spec: Path, cluster: FakeCluster, bucket: str, s3_storage: StorageSpec
) -> None:
    done = run_cli("submit", spec, "--dry-run")
    assert done.code == 0, done.err
    manifest = yaml.safe_load(done.out)
    assert object_keys(bucket, s3_storage) == []
    assert jobs(cluster) == []
    run_cli("submit", spec)
    assert jobs(cluster)[0]["spec"] == manifest["spec"]
    running = run_cli("submit", spec, "--dry-run")
    assert (running.code, running.out) == (0, "")
    assert "nothing would be created" in running.err


def test_spec_errors_are_reported_before_the_cluster_is_contacted(spec: Path, tmp_path: Path) -> None:
    nowhere = {"KUBECONFIG": str(tmp_path / "nowhere")}
    local = cli("submit", spec, "--set", "output=runs/", env=nowhere)
    assert local.code == 3
    assert "error: output: " in local.err
    without = cli("submit", spec, env=nowhere)
    assert without.code == 4
    assert "KUBECONFIG" in without.err


@pytest.mark.parametrize("options", [["--timeout", "5"], ["--dry-run", "--wait"]])
def test_incompatible_options_are_refused(run_cli: RunCli, spec: Path, options: list[str]) -> None:
    assert run_cli("submit", spec, *options).code == 2


def test_waiting_ends_with_the_run_s_own_exit_code(
    kubeconfig: Path, spec: Path, bucket: str, s3_storage: StorageSpec
) -> None:
    waiting = start("submit", spec, "--wait", "--json", env={"KUBECONFIG": str(kubeconfig)})
    store = open_store(f"{bucket}/runs/weather", s3_storage)
    deadline = time.monotonic() + 60
    while not (begun := [entry.key for entry in store.list() if entry.key.endswith("spec.yaml")]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    run = Run.open(f"{bucket}/runs/weather/{begun[0].partition('/')[0]}", s3_storage)
    run.finish("failed", "train.jsonl:3: bad row", exit_code=3)
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 3, err
    assert json.loads(out)["phase"] == "failed"
    assert "train.jsonl:3: bad row" in err


def test_waiting_for_a_run_that_has_succeeded_before_ends_at_once(
    run_cli: RunCli, spec: Path, bucket: str, s3_storage: StorageSpec
) -> None:
    reference = run_cli("submit", spec).out.strip()
    run = Run.open(f"{bucket}/runs/{reference}", s3_storage)
    run.store.put("delta/1.1/manifest.json", b"{}")
    for pointer in (keys.BEST, keys.LAST):
        run.store.put(pointer, documents.to_json({"prefix": "delta/1.1/"}))
    run.finish("succeeded", "finished")
    done = run_cli("submit", spec, "--wait", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["phase"] == "succeeded"


def test_a_run_is_cancelled_refused_and_resumed(run_cli: RunCli, spec: Path, cluster: FakeCluster) -> None:
    reference = run_cli("submit", spec).out.strip()
    done = run_cli("cancel", reference)
    assert done.code == 0, done.err
    assert cluster.objects[PYTORCHJOBS] == {}
    refused = run_cli("submit", spec)
    assert refused.code == 5
    way = re.search("`cpmbee-job (resume s3:.*?)`", refused.err)
    assert way is not None, "the cluster has forgotten it: only the place leads to it"
    assert way[0] in done.err
    resumed = run_cli(*way[1].split(), "--set", "workers.memory=1Gi")
    assert resumed.code == 0, resumed.err
    assert resumed.out.strip() == reference
    for name in ("resume", "cancel"):
        told = run_cli(name, reference, "--json")
        assert told.code == 0, told.err
        assert json.loads(told.out)["run"] == reference
        assert len(jobs(cluster)) == (name == "resume")


def test_logs_can_be_fetched_from_a_run_without_a_delta(
    run_cli: RunCli, spec: Path, bucket: str, s3_storage: StorageSpec, tmp_path: Path
) -> None:
    reference = run_cli("submit", spec).out.strip()
    Run.open(f"{bucket}/runs/{reference}", s3_storage).store.put("logs/pod-0/00001.log", b"a line\n")
    assert run_cli("fetch", reference, "--to", tmp_path / "t").code == 102
    done = run_cli("fetch", reference, "--to", tmp_path / "t", "--what", "logs,spec", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert (document["run"], document["folder"]) == (reference, str(tmp_path / "t"))
    assert "logs/pod-0/00001.log" in document["files"]
    assert (tmp_path / "t" / "logs" / "pod-0" / "00001.log").read_bytes() == b"a line\n"


def test_a_fetched_delta_answers(tmp_path: Path) -> None:
    """The delta of a local run can be fetched without a cluster."""
    job = make_job(tmp_path, rows=64)
    done = cli("local", job, "--run-id", "one", "--processes", 1, "--set", "train.epochs=1")
    assert done.code == 0, done.err
    nowhere = {"KUBECONFIG": str(tmp_path / "nowhere")}
    fetched = cli("fetch", done.out.strip(), "--to", tmp_path / "weather", env=nowhere)
    assert fetched.code == 0, fetched.err
    folder = Path(fetched.out.strip())
    rows = ("--model", tmp_path / "model", "--input", tmp_path / "eval.jsonl", "--max-length", 2)
    whole = cli("predict", "--delta", folder, *rows)
    assert whole.code == 0, whole.err
    assert cli("predict", "--delta", folder / "delta", *rows).out == whole.out
    assert len(whole.out.splitlines()) == 40
    assert list((folder / "logs").iterdir())
