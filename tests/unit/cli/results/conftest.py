"""A tiny random model, a delta of it, and examples to answer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cpmbee_job.model.lora import insert_lora, save_delta_folder
from cpmbee_job.model.weights.model_folder import find_model, load_model
from tests.cli_runner import run_cli
from tests.deltas import delta_state, stored_digest

CONFIG = {"dim_model": 32, "num_heads": 4, "dim_head": 8, "dim_ff": 48, "num_layers": 2, "half": False}
OPTIONS = {"<option_0>": "很好", "<option_1>": "不错"}
EXAMPLES: list[dict[str, Any]] = [
    {"input": "今天天气", "options": OPTIONS, "<ans>": "<option_1>"},
    {"input": "hello", "<ans>": {"a": "x", "b": "y"}},
    {"input": "家学", "options": OPTIONS, "<ans>": "<option_0>"},
]


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_vocab: Path) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    done = run_cli("model", "init", "--config", folder / "config.json", "--vocab", tiny_vocab, "--out", folder / "base")
    assert done.code == 0, done.err
    return folder / "base"


@pytest.fixture(scope="package")
def delta(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A run's folder with a best delta that changes answers."""
    run_folder = tmp_path_factory.mktemp("run")
    files = find_model(model)
    base = load_model(files, torch.float32, torch.device("cpu"))
    insert_lora(base, 4, 8, ["project_q", "project_v"])
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(t.shape, generator=generator) for name, t in delta_state(base).items()}
    manifest = {"r": 4, "alpha": 8, "base_digest": stored_digest(files)}
    save_delta_folder(run_folder / "delta" / "10.1", state, manifest, save_name="mine")
    (run_folder / "delta" / "BEST").write_text(json.dumps({"step": 10, "prefix": "delta/10.1/"}), encoding="utf-8")
    return run_folder


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(example, ensure_ascii=False) + "\n" for example in EXAMPLES), encoding="utf-8")
    return path
