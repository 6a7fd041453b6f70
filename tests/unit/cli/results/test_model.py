from pathlib import Path

from cpmbee_job.model.weights.model_folder import find_model
from tests.cli_runner import run_cli
from tests.deltas import stored_digest


def test_a_merged_model_predicts_like_base_and_delta(model: Path, delta: Path, examples: Path, tmp_path: Path) -> None:
    done = run_cli("model", "merge", "--model", model, "--delta", delta, "--out", tmp_path / "merged")
    assert done.code == 0, done.err
    together = run_cli("predict", "--model", model, "--delta", delta, "--input", examples, "--max-length", 6)
    merged = run_cli("predict", "--model", tmp_path / "merged", "--input", examples, "--max-length", 6)
    assert (together.code, merged.code) == (0, 0)
    assert together.out == merged.out
    assert together.out != run_cli("predict", "--model", model, "--input", examples, "--max-length", 6).out


def test_a_converted_model_is_the_same(model: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "bin", tmp_path / "back"
    assert run_cli("model", "convert", "--model", model, "--out", there, "--to", "bin").code == 0
    assert run_cli("model", "convert", "--model", there, "--out", back).code == 0
    assert sorted(p.name for p in there.iterdir()) == ["config.json", "pytorch_model.bin", "vocab.txt"]
    assert stored_digest(find_model(back)) == stored_digest(find_model(model))
