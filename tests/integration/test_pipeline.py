"""`submit --wait` and `wait` in a pipeline: report files, and the effect of the pipeline's exit on the run."""

import json
import signal
import subprocess
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cpmbee_job import documents
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import PYTORCHJOBS, Object
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.urls import open_store
from tests.fake_cluster import FakeCluster
from tests.integration.jobs import cli, start
from tests.integration.kubernetes_api import kubernetes_api
from tests.integration.submitting import jobs, make_job_file


@pytest.fixture
def kubeconfig(cluster: FakeCluster, tmp_path: Path) -> Iterator[dict[str, str]]:
    with kubernetes_api(cluster, tmp_path) as path:
        yield {"KUBECONFIG": str(path)}


@pytest.fixture
def spec(tmp_path: Path, bucket: str, s3_storage: StorageSpec) -> Path:
    return make_job_file(tmp_path, bucket, s3_storage)


class HangingCluster(FakeCluster):
    """An API server that does not respond at first."""

    def __init__(self, namespace: str = "team") -> None:
        super().__init__(namespace)
        self.asked, self.proceed = threading.Event(), threading.Event()

    def server_version(self) -> str:
        self.asked.set()
        self.proceed.wait(60)
        return super().server_version()


class SlowCluster(FakeCluster):
    """An API server that creates PyTorchJobs slowly."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        self.creating, self.proceed = threading.Event(), threading.Event()

    def create(self, kind: str, manifest: Object, **how: Any) -> Object:
        if kind == PYTORCHJOBS and not how.get("dry_run"):
            self.creating.set()
            self.proceed.wait(60)
        return super().create(kind, manifest, **how)


def submitted(process: "subprocess.Popen[str]", cluster: FakeCluster, bucket: str, storage: StorageSpec) -> Run:
    """Return the run once its PyTorchJob exists and the command waits for its result."""
    deadline = time.monotonic() + 60
    while not jobs(cluster):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return Run.open(jobs(cluster)[0]["metadata"]["annotations"][naming.URL_ANNOTATION], storage)


def succeed(run: Run) -> None:
    run.store.put("delta/1.1/manifest.json", b"{}")
    for pointer in (keys.BEST, keys.LAST):
        run.store.put(pointer, documents.to_json({"prefix": "delta/1.1/"}))
    run.finish("succeeded", "finished", steps=7, scores={"eval_loss": 0.25, "best_step": 5})


def report_of(path: Path) -> ET.Element:
    (case,) = ET.parse(path).getroot().iter("testcase")
    return case


def test_a_success_is_reported_in_the_job_summary(
    spec: Path, kubeconfig: dict[str, str], bucket: str, s3_storage: StorageSpec, tmp_path: Path
) -> None:
    reference = cli("submit", spec, env=kubeconfig).out.strip()
    succeed(Run.open(f"{bucket}/runs/{reference}", s3_storage))
    files = ("--summary", tmp_path / "summary.md", "--junit", tmp_path / "junit.xml")
    for command in (("submit", spec, "--wait"), ("wait", reference)):
        done = cli(*command, "--json", *files, env=kubeconfig)
        assert done.code == 0, done.err
        assert json.loads(done.out)["phase"] == "succeeded"
        assert report_of(tmp_path / "junit.xml").get("name") == reference
        assert list(report_of(tmp_path / "junit.xml")) == []
    summary = (tmp_path / "summary.md").read_text()
    assert summary.count(f"### {reference}: succeeded\n") == 2, "it is appended"
    assert "| best eval loss | 0.2500 at step 5 |" in summary
    assert f"`{bucket}/runs/{reference}`" in summary


def test_a_failure_is_reported_with_the_reason_of_the_run_and_escaped(
    spec: Path, kubeconfig: dict[str, str], bucket: str, s3_storage: StorageSpec, tmp_path: Path
) -> None:
    reference = cli("submit", spec, env=kubeconfig).out.strip()
    reason = "train.jsonl:3: bad row: ```<b>|\x1b[31m]]>&"
    Run.open(f"{bucket}/runs/{reference}", s3_storage).finish("failed", reason, exit_code=3)
    files = ("--summary", tmp_path / "summary.md", "--junit", tmp_path / "junit.xml")
    assert cli("wait", reference, *files, env=kubeconfig).code == 3
    failure = report_of(tmp_path / "junit.xml").find("failure")
    assert failure is not None
    assert "train.jsonl:3: bad row: ```<b>|" in (failure.text or "")
    fence, *rest = (tmp_path / "summary.md").read_text().partition("````text\n")[1:]
    assert fence
    assert "````\n" in rest[0], "a longer fence than any in the text"


def test_errors_before_the_run_begins_are_reported_too(spec: Path, kubeconfig: dict[str, str], tmp_path: Path) -> None:
    files = ("--summary", tmp_path / "summary.md", "--junit", tmp_path / "junit.xml")
    done = cli("submit", spec, "--wait", "--set", "train.batchsize=3", *files, env=kubeconfig)
    assert (done.code, done.out) == (3, "")
    assert "train.batch_size" in (tmp_path / "summary.md").read_text()
    assert report_of(tmp_path / "junit.xml").find("failure") is not None


def test_an_unwritable_output_file_is_reported_before_the_run_begins(
    spec: Path, kubeconfig: dict[str, str], cluster: FakeCluster, tmp_path: Path
) -> None:
    done = cli("submit", spec, "--wait", "--summary", tmp_path / "no" / "summary.md", env=kubeconfig)
    assert done.code == 2
    assert "summary.md" in done.err
    assert jobs(cluster) == []


def test_options_about_the_result_require_wait(spec: Path, kubeconfig: dict[str, str]) -> None:
    assert cli("submit", spec, "--cancel-on-signal", env=kubeconfig).code == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("how", ["--wait", "--follow"])
def test_a_cancelled_pipeline_cancels_its_run(
    spec: Path,
    kubeconfig: dict[str, str],
    cluster: FakeCluster,
    bucket: str,
    s3_storage: StorageSpec,
    tmp_path: Path,
    number: signal.Signals,
    how: str,
) -> None:
    summary = tmp_path / "summary.md"
    options = (how, "--cancel-on-signal", "--json", "--summary", summary)
    process = start("submit", spec, *options, env=kubeconfig)
    run = submitted(process, cluster, bucket, s3_storage)
    process.send_signal(number)
    process.send_signal(number)  # pipelines signal repeatedly
    out, err = process.communicate(timeout=60)
    assert process.returncode == 103, err
    result = run.result()
    assert result is not None
    assert (result["state"], result["reason"]) == ("cancelled", f"cancelled by {number.name}")
    assert cluster.objects[PYTORCHJOBS] == {}
    assert json.loads(out)["phase"] == "cancelled"
    assert "cancelled" in summary.read_text()
    assert "resume" in err


def test_a_waiting_pipeline_that_is_cancelled_cancels_the_run(
    spec: Path, kubeconfig: dict[str, str], cluster: FakeCluster, bucket: str, s3_storage: StorageSpec
) -> None:
    reference = cli("submit", spec, env=kubeconfig).out.strip()
    process = start("wait", reference, "--cancel-on-signal", "--json", env=kubeconfig)
    assert process.stderr is not None
    assert "pending" in process.stderr.readline()  # it has looked, and waits
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 103, err
    assert json.loads(out)["phase"] == "cancelled"
    assert cluster.objects[PYTORCHJOBS] == {}


@pytest.mark.parametrize(
    ("options", "number"),
    [
        (["--cancel-on-signal"], signal.SIGKILL),
        (["--cancel-on-signal"], signal.SIGHUP),
        ([], signal.SIGTERM),
        ([], signal.SIGINT),
    ],
    ids=["a lost machine", "a lost connection", "SIGTERM", "Ctrl-C"],
)
def test_any_other_exit_of_the_command_does_not_cancel_the_run(
    spec: Path,
    kubeconfig: dict[str, str],
    cluster: FakeCluster,
    bucket: str,
    s3_storage: StorageSpec,
    options: list[str],
    number: signal.Signals,
) -> None:
    process = start("submit", spec, "--wait", *options, env=kubeconfig)
    run = submitted(process, cluster, bucket, s3_storage)
    assert process.stdout is not None
    assert process.stdout.readline()  # the submit is done, the wait has begun
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert run.result() is None
    assert len(jobs(cluster)) == 1
    again = cli("submit", spec, "--json", env=kubeconfig)
    assert json.loads(again.out)["adopted"], "the pipeline's next try finds it"


def test_a_signal_before_the_run_begins_creates_nothing(
    spec: Path, tmp_path: Path, bucket: str, s3_storage: StorageSpec
) -> None:
    """The submit is blocked: its cluster does not respond."""
    hanging = HangingCluster()
    with kubernetes_api(hanging, tmp_path) as path:
        process = start("submit", spec, "--wait", "--cancel-on-signal", env={"KUBECONFIG": str(path)})
        assert hanging.asked.wait(60)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        hanging.proceed.set()
    assert process.returncode == 103, err
    assert "no run was started" in err
    assert open_store(f"{bucket}/runs/weather", s3_storage).folders() == []


def test_a_signal_while_a_run_is_created_cancels_it_after_its_creation(
    spec: Path, tmp_path: Path, bucket: str, s3_storage: StorageSpec
) -> None:
    cluster = SlowCluster("team")
    with kubernetes_api(cluster, tmp_path) as path:
        process = start("submit", spec, "--wait", "--cancel-on-signal", env={"KUBECONFIG": str(path)})
        assert cluster.creating.wait(60)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)  # usually arrives during the request; later, the result is the same
        cluster.proceed.set()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 103, err
    (run_id,) = open_store(f"{bucket}/runs/weather", s3_storage).folders()
    result = Run.open(f"{bucket}/runs/weather/{run_id}", s3_storage).result()
    assert result is not None
    assert result["state"] == "cancelled"
    assert cluster.objects[PYTORCHJOBS] == {}
