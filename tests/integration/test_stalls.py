"""Ranks that hang before the first step or after the last one, and ranks that are only slow."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cpmbee_job.model.weights.saving import save_weights
from cpmbee_job.run import keys
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store
from tests.integration.faults import FaultProxy
from tests.integration.jobs import cli, delta, make_job, metrics, numbers, start, workers

LIMIT = 25
"""Seconds: longer than a busy machine takes for an import (15 were not enough at a load of ten on two cores)."""
OPTIONS = ["--set", "train.deterministic=true", "--set", f"train.stall_timeout={LIMIT}"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def undisturbed(job: Path) -> Path:
    done = cli(
        "local", job, "--run-id", "calm", "--processes", 1, *OPTIONS
    )  # any number of processes computes the same
    assert done.code == 0, done.err
    return Path(done.out.strip())


def rank_of(pid: int) -> int:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(int(variable[5:]) for variable in variables if variable.startswith(b"RANK="))


@pytest.mark.parametrize(
    ("doing", "request_of_rank_0", "rank"),
    [
        ("loading", "/00001.begin.json", 1),
        ("publishing", "/delta/LAST", 0),
    ],
)
def test_a_rank_that_hangs_outside_of_training_is_killed_and_the_run_resumes(
    job: Path, undisturbed: Path, bucket: str, proxy: FaultProxy, s3_storage: StorageSpec,
    doing: str, request_of_rank_0: str, rank: int,
) -> None:  # fmt: skip
    target = ["--set", f"output={bucket}", "--set", f"storage.endpoint_url={proxy.url}"]
    held = proxy.hold(request_of_rank_0, before=True)
    process = start("local", job, "--run-id", "hanging", "--processes", 2, *OPTIONS, *target)
    assert held.reached.wait(60), process.communicate()[1]
    (pid,) = [pid for pid in workers(process.pid) if rank_of(pid) == rank]
    os.kill(pid, signal.SIGSTOP)
    held.release()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f" s: no progress for {LIMIT} s while {doing}: ended by the watchdog\n" in err
    run = f"{bucket}/weather/hanging"
    assert json.loads(open_store(run, s3_storage).get(keys.RESULT))["attempts"] == 2
    assert numbers(run, s3_storage) == numbers(undisturbed)
    for pointer in ("BEST", "LAST"):
        assert delta(run, pointer, s3_storage) == delta(undisturbed, pointer)


def test_slow_loading_is_not_a_stall(
    job: Path, bucket: str, proxy: FaultProxy, s3_storage: StorageSpec, tmp_path: Path
) -> None:
    """Reading the headers of all weights, without communication between ranks, takes longer than the limit."""
    model = shutil.copytree(job.parent / "model", tmp_path / "model")
    (weights,) = model.glob("*.safetensors")
    whole = load_file(weights)
    weights.unlink()
    save_weights(whole, model, shard_bytes=sum(tensor.nbytes for tensor in whole.values()) // 9)
    models = open_store(f"{bucket}/model", s3_storage)
    for path in model.iterdir():
        models.upload(path, path.name)
    proxy.fail("trickle", 1 << 30, key="/model-0")
    target = ["--set", f"output={bucket}", "--set", f"storage.endpoint_url={proxy.url}"]
    target += ["--set", f"model={bucket}/model/"]
    cache = {"CPMBEE_CACHE": str(tmp_path / "cache")}
    done = cli("local", job, "--run-id", "slow", "--processes", 2, *OPTIONS, *target, env=cache)
    assert done.code == 0, done.err
    run = open_store(f"{bucket}/weather/slow", s3_storage)
    assert seconds_between(run, keys.attempt_key(1), keys.attempt_key(1, ".begin")) > LIMIT + 5
    assert {line["attempt"] for line in metrics(run.url, storage=s3_storage)} == {1}


def seconds_between(store: Store, first: str, second: str) -> float:
    """By the store's clock."""
    written = {entry.key: entry.modified for entry in store.list("attempts/")}
    begun, ended = written[first], written[second]
    assert begun is not None
    assert ended is not None
    return ended - begun
