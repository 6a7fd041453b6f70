"""`predict`, `evaluate` and `model merge` with everything in S3."""

import json

import pytest
import torch
from typer.testing import CliRunner

from cpmbee_job.cli import app
from cpmbee_job.errors import NotFoundError, RefusedError
from cpmbee_job.model.locate import fetch_delta
from cpmbee_job.model.lora import insert_lora, save_delta_folder
from cpmbee_job.model.weights.model_folder import find_model, load_model
from cpmbee_job.store.urls import open_store
from tests.deltas import delta_state

CONFIG = {"dim_model": 32, "num_heads": 4, "dim_head": 8, "dim_ff": 48, "num_layers": 2, "half": True}
ROWS = [{"input": "今天天气", "options": {"<option_0>": "很好", "<option_1>": "不错"}, "<ans>": "<option_1>"}]


@pytest.fixture
def run(s3, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("CPMBEE_CACHE", str(tmp_path / "cache"))

    def invoke(*arguments: str) -> str:
        options = [argument.replace("BUCKET", bucket) for argument in arguments]
        result = CliRunner().invoke(app, [*options, "--endpoint-url", s3.endpoint_url], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    return invoke


@pytest.fixture
def store(run, bucket, s3_storage, tmp_path, tiny_vocab):
    """A bucket with a model, a run with a best delta, and rows."""
    config, folder = tmp_path / "config.json", tmp_path / "delta"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    run("model", "init", "--config", str(config), "--vocab", str(tiny_vocab), "--out", "BUCKET/base")
    run("model", "init", "--config", str(config), "--vocab", str(tiny_vocab), "--out", str(tmp_path / "base"))
    model = load_model(find_model(tmp_path / "base"), torch.float32, torch.device("cpu"))
    insert_lora(model, 4, 8, ["project_q", "project_v"])
    state = {name: torch.ones_like(tensor) for name, tensor in delta_state(model).items()}
    save_delta_folder(folder, state, {"r": 4, "alpha": 8}, save_name="mine")
    store = open_store(bucket, s3_storage)
    for path in folder.iterdir():
        store.upload(path, f"run/delta/7.1/{path.name}")
    store.put("run/delta/BEST", json.dumps({"prefix": "delta/7.1/"}).encode())
    store.put("rows.jsonl", json.dumps(ROWS[0]).encode())
    return store


def test_records_models_and_answers_are_stored_in_s3(run, store):
    run("predict", "--model", "BUCKET/base", "--delta", "BUCKET/run", "--input", "BUCKET/rows.jsonl",
        "--output", "BUCKET/out/answers.jsonl", "--max-length", "3")  # fmt: skip
    (row,) = map(json.loads, store.get("out/answers.jsonl").decode().splitlines())
    assert row["input"] == ROWS[0]["input"]


def test_a_merged_model_in_s3_scores_as_base_and_delta(run, store):
    run("model", "merge", "--model", "BUCKET/base", "--delta", "BUCKET/run", "--out", "BUCKET/merged")
    assert {o.key for o in store.list("merged/")} == {
        f"merged/{n}" for n in ("config.json", "model.safetensors", "vocab.txt")
    }
    data = ("--data", "BUCKET/rows.jsonl", "--json")
    together = json.loads(run("evaluate", "--model", "BUCKET/base", "--delta", "BUCKET/run/delta/7.1/mine.pt", *data))
    merged = json.loads(run("evaluate", "--model", "BUCKET/merged", *data))
    base = json.loads(run("evaluate", "--model", "BUCKET/base", *data))
    # The .pt has no alpha; the manifest beside it has.
    assert together["loss"] == pytest.approx(merged["loss"], rel=1e-4)
    together = json.loads(run("evaluate", "--model", "BUCKET/base", "--delta", "BUCKET/run/delta/7.1", *data))
    assert together["loss"] == pytest.approx(merged["loss"], rel=1e-5)
    assert base["loss"] != pytest.approx(merged["loss"], rel=1e-3)


def test_existing_outputs_are_not_overwritten(run, store):
    before = store.get("base/model.safetensors")
    with pytest.raises(RefusedError, match="base"):
        run("model", "merge", "--model", "BUCKET/base", "--delta", "BUCKET/run", "--out", "BUCKET/base")
    assert store.get("base/model.safetensors") == before


def test_a_missing_delta_is_named(store, s3_storage, bucket):
    with pytest.raises(NotFoundError, match="nothing"):
        fetch_delta(f"{bucket}/nothing", s3_storage)
    with pytest.raises(NotFoundError, match=r"nothing\.pt"):
        fetch_delta(f"{bucket}/nothing.pt", s3_storage)
