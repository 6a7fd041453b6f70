"""The two containers of a pod as processes, init container and entrypoint, with the environment of a cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpmbee_job import documents
from cpmbee_job.errors import JobFailedError, PreflightError, SpecError
from cpmbee_job.process import contract
from cpmbee_job.process.pod import TERMINATION_LOG_ENV
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec, load_spec
from tests.integration.jobs import descendants, make_job, wait_for, wait_until_gone, workers
from tests.ports import free_port
from tests.processes import run_python


@pytest.fixture
def termination_message(tmp_path: Path) -> Path:
    """The termination log that the kubelet would read."""
    path = tmp_path / "termination-log"
    path.touch()
    return path


@pytest.fixture
def pod(termination_message: Path) -> dict[str, str]:
    return {**os.environ, TERMINATION_LOG_ENV: str(termination_message)}


def begin(tmp_path: Path, *overrides: str) -> Run:
    return Run.start(load_spec(make_job(tmp_path), overrides), "r1")


def prepare(url: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return run_python(*contract.prepare_command(url), env=environment)


def train(url: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return run_python(*contract.train_command(url), env=environment)


def test_an_image_incompatible_with_the_launcher_fails_the_run_before_any_read(tmp_path, pod, termination_message):
    run = tmp_path / "runs" / "weather" / "r1"
    run.mkdir(parents=True)
    (run / keys.SPEC).write_text("of: a form that this version has never seen\n")
    pod |= {contract.VERSION_ENV: "1000", contract.LAUNCHER_ENV: "99.0", contract.STORAGE_ENV: '{"new_field": 1}'}
    assert prepare(str(run), pod).returncode == 0  # a failure would restart it forever
    result = json.loads((run / keys.RESULT).read_text())
    assert (result["state"], result["exit_code"]) == ("failed", 3)
    assert "the image is older" in result["reason"]
    termination_message.write_text("")
    assert train(str(run), pod).returncode == 3
    assert "the image is older" in termination_message.read_text()
    assert "use the image of cpmbee-job 99.0" in termination_message.read_text()


def test_an_unreadable_spec_fails_the_run(tmp_path, pod):
    run = begin(tmp_path)
    run.store.put(keys.SPEC, b"nonsense: 1\n")
    assert prepare(run.url, pod).returncode == 0
    assert run.result()["exit_code"] == SpecError.exit_code


def test_missing_credentials_fail_the_init_container_at_once_with_a_message(
    bucket, s3_storage: StorageSpec, pod, termination_message, tmp_path
):
    pod = {name: value for name, value in pod.items() if not name.startswith("AWS_")}
    pod |= {contract.STORAGE_ENV: s3_storage.model_dump_json(), "AWS_EC2_METADATA_DISABLED": "true"}
    pod["HOME"] = str(tmp_path)
    assert prepare(f"{bucket}/weather/r1", pod).returncode == PreflightError.exit_code
    assert "no credentials" in termination_message.read_text()


def test_an_outage_of_the_store_is_retried(bucket, proxy, pod, tmp_path):
    storage = StorageSpec(endpoint_url=proxy.url)
    run = Run.start(load_spec(make_job(tmp_path), [f"output={bucket}"]), "r1", storage)
    proxy.fail("error", 6)  # all retries of the client
    done = prepare(run.url, pod | {contract.STORAGE_ENV: storage.model_dump_json()})
    assert done.returncode == 0, done.stderr
    assert "the store failed, retrying" in done.stderr
    assert run.data()["train"]["examples"] == 400


def test_a_worker_that_is_killed_repeatedly_fails_the_run(tmp_path, pod, termination_message):
    """Like an OOM kill that no counter records. (Fewer starts and shorter pauses than in a pod.)"""
    run = begin(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'cpmbee_job.train.worker' in sys.orig_argv and 'torch.distributed.run' not in sys.orig_argv:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    program = (
        "import sys\n"
        "from cpmbee_job.train import __main__, supervisor\n"
        "supervisor.MAX_IDLE_STARTS, supervisor.MAX_PAUSE = 2, 0.1\n"
        f"sys.argv = ['train', {run.url!r}]\n"
        "__main__.main()\n"
    )
    pod["PYTHONPATH"] = os.pathsep.join([str(tmp_path), pod.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", program], env=pod, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    reason = "no newer checkpoint after 2 starts: a worker was killed or exited without a message"
    assert run.result()["reason"] == termination_message.read_text() == reason


def test_a_deadline_that_passes_between_two_starts_fails_the_run(tmp_path, pod, termination_message):
    run = begin(tmp_path, "train.deadline=60")
    run.store.put(keys.attempt_key(1), documents.to_json({"started_unix": time.time() - 61}))
    assert train(run.url, pod).returncode == JobFailedError.exit_code
    assert run.result()["reason"] == termination_message.read_text() == "the deadline of 60 s has passed"


@contextmanager
def two_pods(tmp_path: Path, pod: dict[str, str]) -> Iterator[tuple[Path, list["subprocess.Popen[bytes]"]]]:
    """Yield the run's folder and two training entrypoints with the environment of elastic pods."""
    run = begin(tmp_path, "train.epochs=200", "train.early_stop_patience=0", "data.eval=null")
    assert prepare(run.url, pod).returncode == 0
    port = free_port()
    pod |= {
        "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_CONF": "join_timeout=300,last_call_timeout=2,read_timeout=60",
        "PET_NNODES": "1:2",
        "PET_NPROC_PER_NODE": "1",
        "PET_MAX_RESTARTS": "100",
        "PET_LOCAL_ADDR": "127.0.0.1",
        contract.CPUS_ENV: "1",
    }
    command = [sys.executable, *contract.train_command(run.url)]
    pods = [subprocess.Popen(command, env=pod | {"POD_NAME": f"worker-{i}"}) for i in range(2)]
    folder = Path(run.url)
    try:
        wait_for(folder / "checkpoints" / "4", 120)
        sizes = {json.loads(path.read_text())["world_size"] for path in (folder / "attempts").glob("?????.json")}
        assert 2 in sizes
        yield folder, pods
    finally:
        below = descendants(pods[0].pid)
        for process in pods:
            process.terminate()
            process.wait(60)
        wait_until_gone(below)


def next_world_size(folder: Path, begun: int) -> int:
    """Return the world size of the attempt after the first `begun` ones."""
    following = folder / keys.attempt_key(begun + 1)
    wait_for(following, 120)
    return int(json.loads(following.read_text())["world_size"])


def test_pods_train_together_and_survive_the_loss_of_one(tmp_path, pod):
    """The surviving pod continues with one rank."""
    with two_pods(tmp_path, pod) as (folder, pods):
        begun = len(list((folder / "attempts").glob("?????.json")))
        for process in [*descendants(pods[1].pid), pods[1].pid]:
            os.kill(process, signal.SIGKILL)
        assert next_world_size(folder, begun) == 1


def test_the_other_pods_do_not_wait_for_a_pod_killed_while_stopping(tmp_path, pod):
    """All ranks agreed to stop, so the workers of the surviving pod succeeded, but its torchrun waits for a torchrun
    that never leaves the rendezvous."""
    with two_pods(tmp_path, pod) as (folder, pods):
        begun = len(list((folder / "attempts").glob("?????.json")))
        (worker,) = workers(pods[1].pid)
        others = [process for process in [*descendants(pods[1].pid), pods[1].pid] if process != worker]
        for process in others:
            os.kill(process, signal.SIGSTOP)
        os.kill(worker, signal.SIGTERM)
        wait_until_gone([worker], 60)
        for process in others:
            os.kill(process, signal.SIGKILL)
        assert next_world_size(folder, begun) == 1
