import json
from pathlib import Path

import pytest

from tests.cli_runner import run_cli
from tests.unit.cli.results.conftest import CONFIG, OPTIONS
from tests.unit.cli.results.test_predict import lines


def test_all_forms_of_a_delta_are_the_same(model: Path, delta: Path, examples: Path) -> None:
    folder = delta / "delta" / "10.1"
    reports = [
        run_cli("evaluate", "--model", model, "--delta", d, "--data", examples, "--json")
        for d in (delta, folder, folder / "delta.safetensors")
    ]
    assert [r.code for r in reports] == [0, 0, 0], reports[0].err
    assert reports[0].out == reports[1].out
    assert reports[2].out == reports[0].out


def test_loss_and_accuracy_are_those_of_the_single_examples(model: Path, examples: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    done = run_cli("evaluate", "--model", model, "--data", examples, "--per-example", path, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    scores = lines(path.read_text(encoding="utf-8"))
    assert report["examples"] == len(scores) == 3
    assert report["loss"] == pytest.approx(-sum(s["logprob"] for s in scores) / sum(s["target_tokens"] for s in scores))
    assert report["accuracy"] == sum(s.get("correct", 0) for s in scores) / 2
    assert [s.get("choice") in OPTIONS for s in scores] == [True, False, True]
    printed = run_cli("evaluate", "--model", model, "--data", examples)
    assert f"accuracy       {report['accuracy']:.4f}" in printed.out


def test_both_dialects_of_the_config_are_read(model: Path, examples: Path, tmp_path: Path) -> None:
    assert run_cli("model", "convert", "--model", model, "--out", tmp_path / "hub").code == 0
    hub_names = {"dim_model": "hidden_size", "num_heads": "num_attention_heads", "num_layers": "num_hidden_layers"}
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    renamed = {hub_names.get(key, key): value for key, value in config.items()}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(renamed), encoding="utf-8")
    original, hub = (run_cli("evaluate", "--model", m, "--data", examples) for m in (model, tmp_path / "hub"))
    assert "original dialect" in original.err
    assert "hub dialect" in hub.err
    assert original.out == hub.out


def test_a_delta_of_another_base_causes_a_warning(model: Path, delta: Path, examples: Path, tmp_path: Path) -> None:
    config, other = tmp_path / "config.json", tmp_path / "other"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    vocab = model / "vocab.txt"
    assert run_cli("model", "init", "--config", config, "--vocab", vocab, "--out", other, "--seed", 1).code == 0
    done = run_cli("evaluate", "--model", other, "--delta", delta, "--data", examples)
    assert done.code == 0
    assert "was trained on other weights" in done.err
