"""The original's script under torchrun: its flags, its files."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integration.jobs import cli, descendants, losses, make_job, metrics, wait_for
from tests.processes import run_python

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    make_job(folder)
    raw = folder / "bee_data"
    raw.mkdir()
    for name in ("train", "eval"):
        (folder / f"{name}.jsonl").rename(raw / f"{name}.jsonl")
    options = ["--input", raw, "--output_path", folder / "bin_data", "--output_name", "weather"]
    assert cli("preprocess", *options).code == 0
    return folder


def command(folder: Path, save: str, *options: str, processes: int = 1) -> list[str]:
    parts = [
        *TORCHRUN, f"--nproc_per_node={processes}", "-m", "cpmbee_job.finetune",
        "--model-config", folder / "model/config.json", "--load", folder / "model/model.safetensors",
        "--dataset", folder / "bin_data/train", "--eval_dataset", folder / "bin_data/eval",
        "--save", folder / save, "--max-length", "256", "--train-iters", "20", "--warmup-iters", "1",
        "--lr", "0.003", "--lr-decay-style", "cosine", "--eval-interval", "2", *options,
    ]  # fmt: skip
    return [str(part) for part in parts]


def finetune(folder: Path, save: str, *options: str, processes: int = 1) -> "subprocess.CompletedProcess[str]":
    return run_python(*command(folder, save, *options, processes=processes)[1:])


def only_run(folder: Path, name: str = "cpm-bee-finetune") -> Path:
    (run,) = (folder / name).iterdir()
    return run


def test_the_tutorials_flags_train_a_delta(folder: Path) -> None:
    done = finetune(
        folder, "results", "--use-delta", "--epoch", "1", "--batch-size", "4", "--inspect-iters", "3",
        "--early-stop-patience", "5", "--weight-decay", "0.01", "--clip-grad", "1.0", "--loss-scale", "32768",
        "--start-step", "0", "--save-name", "cpm_bee_finetune", "--task-name", "weather",
        "--tensorboard", str(folder / "tb"), "--log-dir", str(folder / "log"), processes=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    state = torch.load(folder / "results/cpm_bee_finetune-delta-best.pt", weights_only=True)
    assert set(state) == {
        f"encoder.layers.{layer}.self_att.self_attention.project_{which}.lora.lora_{part}"
        for layer in (0, 1) for which in "qv" for part in "AB"
    }  # fmt: skip
    run = only_run(folder / "results")
    assert len(losses(run)) == 6  # 45 rows in steps of 2 x 4
    assert [line["step"] for line in metrics(run, "eval")] == [2, 4, 6]
    assert (folder / "log/metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()
    assert list((folder / "tb").glob("events.*"))
    assert "grad norm" in done.stderr


def test_resume_continues_the_newest_run(folder: Path) -> None:
    options = ["--use-delta", "--epoch", "20", "--batch-size", "8", "--checkpoint-interval", "2"]
    options += ["--early-stop-patience", "0"]
    process = subprocess.Popen(command(folder, "resumed", *options), stderr=subprocess.PIPE)
    wait_for(folder / "resumed/cpm-bee-finetune", 60)
    run = only_run(folder / "resumed")
    wait_for(run / "checkpoints/2/manifest.1.json")
    for pid in [*descendants(process.pid), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()

    done = finetune(folder, "resumed", *options, "--resume", processes=2)
    assert done.returncode == 0, done.stderr
    assert only_run(folder / "resumed") == run
    assert len(losses(run)) == 120
    again = finetune(folder, "resumed", *options, "--resume")
    assert again.returncode == 0
    assert "succeeded already" in again.stderr


def test_all_weights_can_be_trained(folder: Path) -> None:
    done = finetune(
        folder, "full", "--epoch", "1", "--batch-size", "8", "--max-steps", "2", "--drop-last", "--lr", "1e-4"
    )
    assert done.returncode == 0, done.stderr
    state = torch.load(folder / "full/cpm_bee_finetune-best.pt", weights_only=True)
    assert "input_embedding.weight" in state
    run = only_run(folder / "full")
    best = run / json.loads((run / "delta/BEST").read_text())["prefix"]
    assert {"config.json", "vocab.txt"} <= {p.name for p in best.iterdir()}  # a model folder for `predict --model`


def test_errors_are_reported_with_a_message(folder: Path) -> None:
    done = finetune(folder, "wrong", "--load", str(folder / "nowhere.bin"))
    assert done.returncode != 0
    assert "nowhere.bin" in done.stderr
    assert 'finetune.py", line' not in done.stderr  # torchrun still prints its own traceback
    done = finetune(folder, "wrong", "--use-delta", "--epoch", "0")
    assert "epochs" in done.stderr
