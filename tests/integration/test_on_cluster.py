"""`evaluate` and `predict` with `--on-cluster`, against a real object store and an API server whose pods are processes
of this machine."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cpmbee_job.cli import app
from cpmbee_job.demo import make_model, reports
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import JOBS, PODS, Object
from cpmbee_job.launch.lifecycle.garbage import collect, find_garbage
from cpmbee_job.run import keys
from cpmbee_job.run.deltas import read_delta_pointer
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec, load_spec
from cpmbee_job.store.urls import open_store
from tests.fake_cluster import FakeCluster
from tests.integration.jobs import Outcome, assert_same_scores, cli, start
from tests.integration.kubernetes_api import kubernetes_api
from tests.integration.submitting import object_keys
from tests.processes import run_python

RunCli = Callable[..., Outcome]


class WorkingCluster(FakeCluster):
    """Executes each created Job: its container's command as a process, its end as kubelet and controller tell
    it. `idle`: nothing is done."""

    def __init__(self, cache: Path) -> None:
        super().__init__("team")
        self.cache = cache
        self.idle = False

    def create(self, kind: str, manifest: Object, **how: Any) -> Object:
        made = super().create(kind, manifest, **how)
        if kind == JOBS and not self.idle:
            threading.Thread(target=self._work, args=(made,), daemon=True).start()
        return made

    def _work(self, job: Object) -> None:
        template = job["spec"]["template"]
        (container,) = template["spec"]["containers"]
        assert container["command"] == ["tini", "--", "python"]
        arguments = [argument.replace("$$", "$") for argument in container["args"]]
        given = {one["name"]: one["value"] for one in container["env"] if "value" in one}
        owner = {"uid": job["metadata"]["uid"]}
        pod = {"metadata": {"name": f"{job['metadata']['name']}-x7k2p", "ownerReferences": [owner]}}
        pod["metadata"] |= template["metadata"]
        here = {"CPMBEE_CACHE": str(self.cache), "HOME": str(self.cache), "CPMBEE_CPUS": "1"}
        done = run_python(*arguments, env={**os.environ, **given, **here})
        said = (done.stdout + done.stderr).splitlines()
        ended = {"exitCode": done.returncode, "message": "\n".join(said[-5:])}
        status = {"name": naming.TRAIN_CONTAINER, "state": {"terminated": ended}, "restartCount": 0}
        phase = "Failed" if done.returncode else "Succeeded"
        self.put(PODS, {**pod, "spec": template["spec"], "status": {"phase": phase, "containerStatuses": [status]}})
        condition = {"type": "Failed" if done.returncode else "Complete", "status": "True"}
        job["status"] = {"conditions": [condition]}
        self.put(JOBS, job)

    def delete(self, kind: str, name: str, uid: str) -> None:
        super().delete(kind, name, uid)
        pods = self.objects.get(PODS, {})
        for pod in [pod for pod in pods.values() if pod["metadata"]["ownerReferences"][0]["uid"] == uid]:
            del pods[pod["metadata"]["name"]]


@pytest.fixture
def cluster(tmp_path: Path) -> WorkingCluster:
    return WorkingCluster(tmp_path / "pod")


@pytest.fixture
def run_cli(cluster: WorkingCluster, tmp_path: Path, s3_storage: StorageSpec) -> Iterator[RunCli]:
    with kubernetes_api(cluster, tmp_path) as kubeconfig:
        here = {"KUBECONFIG": str(kubeconfig), "CPMBEE_CACHE": str(tmp_path / "cache")}
        here["AWS_ENDPOINT_URL"] = s3_storage.endpoint_url or ""
        yield lambda *arguments: cli(*arguments, env=here)


@pytest.fixture
def job(tmp_path: Path, bucket: str, s3_storage: StorageSpec) -> Path:
    """A spec beside a model and rows."""
    make_model(tmp_path / "model")
    rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in reports(12, 3)]
    (tmp_path / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    path = tmp_path / "job.yaml"
    path.write_text(
        f"name: weather\nmodel: model/\ndata: {{train: rows.jsonl}}\noutput: {bucket}/runs/\n"
        f"image: example/train:1\nstorage: {{endpoint_url: {s3_storage.endpoint_url}, secret: s3}}\n"
    )
    return path


def test_scores_equal_local_scores_and_are_kept_in_the_store(
    run_cli: RunCli, job: Path, cluster: WorkingCluster, tmp_path: Path, bucket: str, s3_storage: StorageSpec
) -> None:
    what = ("evaluate", "--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--json")
    here = run_cli(*what, "--per-example", tmp_path / "here.jsonl")
    there = run_cli(
        *what, "--on-cluster", "--job", job, "--per-example", tmp_path / "there.jsonl", "--output", tmp_path / "scores"
    )
    assert (here.code, there.code) == (0, 0), here.err + there.err
    scores = json.loads(there.out)
    assert_same_scores(scores, json.loads(here.out))
    assert json.loads((tmp_path / "scores").read_text()) == scores
    lines = [(tmp_path / name).read_text().splitlines() for name in ("here.jsonl", "there.jsonl")]
    for ours, theirs in zip(*lines, strict=True):
        assert json.loads(theirs) == pytest.approx(json.loads(ours), rel=1e-4)
    kept = [key for key in object_keys(f"{bucket}/runs", s3_storage) if key.startswith("inference/")]
    assert [Path(key).name for key in kept] == ["per-example.jsonl", "request.json", "scores.json"]

    asked = list(cluster.calls)
    again = run_cli(*what, "--on-cluster", "--job", job)
    assert (again.code, json.loads(again.out)) == (0, scores)
    assert cluster.calls == asked  # no more requests: the Job may be deleted by then


def test_a_run_supplies_the_image_and_the_store_for_its_own_delta(
    run_cli: RunCli, job: Path, cluster: WorkingCluster, tmp_path: Path, bucket: str, s3_storage: StorageSpec
) -> None:
    local = run_cli("local", job, "--set", "train.epochs=1", "--set", "train.max_length=256", "--run-id", "r1")
    assert local.code == 0, local.err
    run = Run.open(f"{bucket}/runs/weather/r1", s3_storage)
    (tmp_path / "question.jsonl").write_text((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    what = ("predict", "--model", tmp_path / "model", "--delta", run.url, "--input", tmp_path / "question.jsonl")
    here = run_cli(*what, "--max-length", 4)
    there = run_cli(*what, "--max-length", 4, "--on-cluster")
    assert there.code == 0, there.err
    assert there.out == here.out
    (created,) = cluster.objects[JOBS].values()
    (container,) = created["spec"]["template"]["spec"]["containers"]
    delta = container["args"][container["args"].index("--delta") + 1]
    best = read_delta_pointer(run.store, keys.BEST)
    assert delta == f"{run.url}/{best}"

    what = ("evaluate", "--model", tmp_path / "model", "--delta", run.url, "--data", tmp_path / "rows.jsonl")
    scored = run_cli(*what, "--record", "--json", "--on-cluster")
    assert scored.code == 0, scored.err
    scores = json.loads(scored.out)
    kept = run.store.get(f"{best}{keys.RECORDED_SCORES}{scores['eval_digest']}.json")
    assert json.loads(kept)["loss"] == scores["loss"]


def test_an_invalid_record_fails_the_job_with_file_line_and_code_until_it_is_fixed(
    run_cli: RunCli, job: Path, cluster: WorkingCluster, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    good = rows.read_text()
    rows.write_text(good + '{"input": "no answer"}\n')
    what = ("evaluate", "--model", tmp_path / "model", "--data", rows, "--on-cluster", "--job", job)
    done = run_cli(*what)
    assert done.code == 3, done.err
    assert "rows.jsonl:13" in done.err.splitlines()[-2]
    assert "evaluate failed with exit code 3" in done.err
    assert run_cli(*what).code == 3
    assert [verb for verb, name in cluster.calls if name.startswith(JOBS) and verb != "get"] == [
        "create", "delete", "create",
    ]  # fmt: skip
    rows.write_text(good)
    assert run_cli(*what).code == 0


def test_an_active_inference_is_waited_for_and_not_started_twice(
    run_cli: RunCli, job: Path, cluster: WorkingCluster, tmp_path: Path, bucket: str, s3_storage: StorageSpec
) -> None:
    cluster.idle = True
    what = ("evaluate", "--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--on-cluster", "--job", job)
    for _ in range(2):
        done = run_cli(*what, "--timeout", "0s")
        assert done.code == 101, done.err
        assert "pending" in done.err
    assert "already exists" in done.err
    (created,) = cluster.objects[JOBS].values()
    folder = open_store(created["metadata"]["annotations"][naming.URL_ANNOTATION], s3_storage)
    folder.put(keys.SCORES, b'{"loss": 0.5}')  # as its pod writes it
    done = run_cli(*what)
    assert (done.code, done.out) == (0, "loss           0.5000\n")
    folder.put(keys.SCORES, b'{"loss": ')
    damaged = run_cli(*what)
    assert (damaged.code, f"error: {folder.url}/{keys.SCORES}: " in damaged.err) == (4, True), damaged.err
    folder.put(keys.SCORES, b'{"loss": 0.5}')
    spec = load_spec(job)
    assert folder.url.startswith(keys.inference_url(spec.output, ""))


@pytest.mark.parametrize(
    ("command", "rows", "given"),
    [
        (
            "predict",
            "--input",
            {"--beam-size": "2", "--repetition-penalty": "1.5", "--max-length": "7", "--batch-size": "3"},
        ),
        ("evaluate", "--data", {"--format": "ccpm", "--batch-tokens": "512"}),
    ],
)
def test_every_inference_flag_reaches_the_pod(
    run_cli: RunCli, job: Path, cluster: WorkingCluster, tmp_path: Path, command: str, rows: str, given: dict[str, str]
) -> None:
    cluster.idle = True
    here = {rows, "--model", "--delta", "--output", "--json", "--record", "--per-example"}
    here |= {"--on-cluster", "--job", "--timeout", "--context", "--namespace", "--endpoint-url", "--path-style"}
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    assert {max(parameter.opts, key=len) for parameter in parameters} - here == given.keys()
    flags = [f"{flag}={value}" for flag, value in given.items()]
    what = ("--model", tmp_path / "model", rows, tmp_path / "rows.jsonl", "--on-cluster", "--job", job)
    assert run_cli(command, *what, *flags, "--timeout", "0s").code == 101
    (created,) = cluster.objects[JOBS].values()
    (container,) = created["spec"]["template"]["spec"]["containers"]
    asked = dict(argument.split("=") for argument in container["args"] if "=" in argument and argument.startswith("--"))
    for flag, value in given.items():
        assert float(asked[flag]) == float(value) if value[0].isdigit() else asked[flag] == value


def test_gc_leaves_results_and_what_a_waiting_job_needs(
    run_cli: RunCli, job: Path, cluster: WorkingCluster, tmp_path: Path, bucket: str, s3_storage: StorageSpec
) -> None:
    output = f"{bucket}/runs"
    what = ("evaluate", "--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--on-cluster", "--job", job)

    def places() -> set[str]:
        """What is there, as far as its folder."""
        return {key.rpartition("/")[0] for key in object_keys(output, s3_storage)}

    assert run_cli(*what).code == 0
    kept = {place for place in places() if place.startswith("inference/")}
    uploads = places() - kept
    assert (len(kept), len(uploads)) == (1, 2)
    time.sleep(1.1)
    before = int(time.time())  # the store's clock shows seconds, rounded down
    cluster.idle = True
    assert run_cli(*what, "--batch-tokens", 4096, "--timeout", "0s").code == 101  # of the same model and rows
    (waits,) = places() - kept - uploads
    assert find_garbage(output, s3_storage, before).garbage == ()

    findings = find_garbage(output, s3_storage, time.time() + 3600)
    collect(findings, s3_storage, lambda _: None)
    assert places() == kept
    again = run_cli(*what, "--json")
    assert (again.code, json.loads(again.out)["examples"]) == (0, 12), again.err
    cluster.objects[JOBS].clear()  # the Job is deleted: the command starts the inference again with all its inputs
    assert run_cli(*what, "--batch-tokens", 4096, "--timeout", "0s").code == 101
    assert places() == kept | uploads | {waits}


def test_ctrl_c_stops_waiting_and_does_not_cancel_the_job(
    job: Path, cluster: WorkingCluster, tmp_path: Path, s3_storage: StorageSpec
) -> None:
    cluster.idle = True
    what = ("evaluate", "--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--on-cluster", "--job", job)
    with kubernetes_api(cluster, tmp_path) as kubeconfig:
        watching = start(*what, env={"KUBECONFIG": str(kubeconfig)})
        assert watching.stderr is not None
        for line in watching.stderr:
            if "pending" in line:
                break
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=60)
    assert watching.returncode == 130, said
    assert "continues; repeat the command to wait again" in said
    assert len(cluster.objects[JOBS]) == 1


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--on-cluster"], 2, "name a job spec with --job"),
        (["--on-cluster", "--delta", "s3://tests/nowhere/run"], 2, "--delta: s3://tests/nowhere/run: no run there"),
        (["--timeout", "5m"], 2, "--timeout requires --on-cluster"),
        (["--on-cluster", "--job", "JOB", "--delta", "/nowhere"], 3, "--delta: /nowhere: no such file or folder"),
        (["--on-cluster", "--job", "JOB", "--data", "s3://tests/nowhere/rows.jsonl"], 4, "--data: s3://tests/nowhere"),
    ],
)
def test_errors_equal_those_of_the_command_line(
    run_cli: RunCli, job: Path, tmp_path: Path, cluster: WorkingCluster, options: list[str], code: int, message: str
) -> None:
    given = [str(job) if option == "JOB" else option for option in options]
    done = run_cli("evaluate", "--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", *given)
    assert done.code == code, done.err
    assert message in done.err
    assert JOBS not in cluster.objects
