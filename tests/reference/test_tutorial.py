"""The tutorial on its own data: all of CCPM prepared, a part of it trained, with the original's small model."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import needs_reference
from tests.integration.jobs import cli, losses

JOB = """\
name: ccpm-lora
model: model/
data: {{train: {train}, eval: {eval}, format: ccpm}}
output: runs/
train: {{epochs: 5, batch_size: 5, max_length: 2048, lr: 1.0e-4, train_iters: 100, warmup_iters: 1,
        lr_decay_style: noam, weight_decay: 0.01, clip_grad: 1.0, loss_scale: 32768, eval_interval: 50,
        early_stop_patience: 5}}
"""


@pytest.fixture
def folder(tmp_path: Path, reference: Path) -> Path:
    """The reference model as a model folder."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(reference / "reference" / name, model / name)
    shutil.copy(reference / "model" / "vocab.txt", model / "vocab.txt")
    return tmp_path


def spec(folder: Path, train: Path, evaluation: Path) -> Path:
    job = folder / "job.yaml"
    job.write_text(JOB.format(train=train, eval=evaluation), encoding="utf-8")
    return job


@needs_reference
def test_all_of_ccpm_is_prepared(folder: Path, reference: Path) -> None:
    ccpm = reference / "data" / "ccpm"
    done = cli("prepare", spec(folder, ccpm / "train.jsonl", ccpm / "eval.jsonl"), "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    for split in ("train", "eval"):
        with (ccpm / f"{split}.jsonl").open(encoding="utf-8") as lines:
            assert record[split]["examples"] == sum(1 for _ in lines)
        assert record[split]["skipped"] == {}
    assert record["train"]["tokens"] / (record["train"]["rows"] * 2048) > 0.985


@needs_reference
def test_a_part_of_ccpm_is_trained_and_scored(folder: Path, reference: Path) -> None:
    for split, count in (("train", 400), ("eval", 60)):
        lines = (reference / "data/ccpm" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
    job = spec(folder, folder / "train.jsonl", folder / "eval.jsonl")
    done = cli("local", job, "--run-id", "r", "--processes", 2, "--set", "train.max_steps=4", "--set", "train.lr=0.01")
    assert done.code == 0, done.err
    run = Path(done.out.strip())
    assert len(losses(run)) == 4

    # The evaluation loss in training equals that of `evaluate` on single examples.
    scored = cli(
        "evaluate",
        "--model",
        folder / "model",
        "--delta",
        run,
        "--data",
        folder / "eval.jsonl",
        "--format",
        "ccpm",
        "--json",
    )
    assert scored.code == 0, scored.err
    best = json.loads((run / "result.json").read_text())["scores"]["eval_loss"]
    assert json.loads(scored.out)["loss"] == pytest.approx(best, rel=1e-3)


@needs_reference
def test_the_first_loss_is_the_originals(folder: Path, reference: Path) -> None:
    """Before any update, the loss of a step equals the original's loss of its examples, scored one by one."""
    rows, scores = reference / "reference" / "packed_rows.jsonl", reference / "reference" / "row_scores.jsonl"
    plain = [json.loads(line) for line in scores.read_text(encoding="utf-8").splitlines()]
    expected = -sum(row["base_logprob"] for row in plain) / sum(row["target_tokens"] for row in plain)
    job = spec(folder, rows, rows)
    options = ["data.format=bee", "data.eval=null", "train.max_length=512", "train.batch_size=100", "train.max_steps=1"]
    done = cli("local", job, "--run-id", "r", *(part for option in options for part in ("--set", option)))
    assert done.code == 0, done.err
    assert losses(Path(done.out.strip())) == pytest.approx([expected], rel=1e-3)
