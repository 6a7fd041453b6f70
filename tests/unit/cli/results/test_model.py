"""The verbs about models, through the command line."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from cpmbee_job.cli import app
from cpmbee_job.errors import CpmbeeError
from cpmbee_job.model.lora import insert_lora, save_delta_folder
from cpmbee_job.model.weights.model_folder import base_digest, find_model, load_model
from tests.deltas import delta_state

CONFIG = {"dim_model": 32, "num_heads": 4, "dim_head": 8, "dim_ff": 48, "num_layers": 2, "half": False}
OPTIONS = {"<option_0>": "很好", "<option_1>": "不错"}
ROWS = [
    {"input": "今天天气", "options": OPTIONS, "<ans>": "<option_1>"},
    {"input": "hello", "<ans>": {"a": "x", "b": "y"}},
    {"input": "家学", "options": OPTIONS, "<ans>": "<option_0>"},
]


def run(*arguments: object) -> SimpleNamespace:
    """What the verb prints, and the exit code that `main` makes of how it ends."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    error, code = "", result.exit_code
    if isinstance(result.exception, CpmbeeError):
        error, code = str(result.exception), result.exception.exit_code
    elif result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return SimpleNamespace(code=code, out=result.stdout, err=result.stderr + error)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_vocab) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    done = run("model", "init", "--config", folder / "config.json", "--vocab", tiny_vocab, "--out", folder / "base")
    assert done.code == 0, done.err
    return folder / "base"


@pytest.fixture(scope="module")
def delta(tmp_path_factory, model) -> Path:
    """A run's folder with a best delta that changes answers."""
    run_folder = tmp_path_factory.mktemp("run")
    files = find_model(model)
    base = load_model(files, torch.float32, torch.device("cpu"))
    insert_lora(base, 4, 8, ["project_q", "project_v"])
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(t.shape, generator=generator) for name, t in delta_state(base).items()}
    manifest = {"r": 4, "alpha": 8, "base_digest": base_digest(files)}
    save_delta_folder(run_folder / "delta" / "10.1", state, manifest, save_name="mine")
    (run_folder / "delta" / "BEST").write_text(json.dumps({"step": 10, "prefix": "delta/10.1/"}), encoding="utf-8")
    return run_folder


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    return path


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_predict_prints_the_rows_with_answers(model, rows):
    done = run("predict", "--model", model, "--input", rows, "--max-length", 5)
    assert done.code == 0, done.err
    printed = lines(done.out)
    assert [list(row) for row in printed] == [list(row) for row in ROWS]
    assert [row["input"] for row in printed] == [row["input"] for row in ROWS]
    assert isinstance(printed[0]["<ans>"], str)
    assert set(printed[1]["<ans>"]) == {"a", "b"}


def test_predict_into_a_file_in_another_batch_is_the_same(model, rows, tmp_path):
    options = ("predict", "--model", model, "--input", rows, "--max-length", 5)
    out = tmp_path / "new" / "answers.jsonl"
    done = run(*options, "--output", out, "--batch-size", 1)
    assert (done.code, done.out) == (0, ""), done.err
    assert out.read_text(encoding="utf-8") == run(*options).out


def test_a_merged_model_answers_as_base_and_delta(model, delta, rows, tmp_path):
    done = run("model", "merge", "--model", model, "--delta", delta, "--out", tmp_path / "merged")
    assert done.code == 0, done.err
    together = run("predict", "--model", model, "--delta", delta, "--input", rows, "--max-length", 6)
    merged = run("predict", "--model", tmp_path / "merged", "--input", rows, "--max-length", 6)
    assert (together.code, merged.code) == (0, 0)
    assert together.out == merged.out
    assert together.out != run("predict", "--model", model, "--input", rows, "--max-length", 6).out


def test_all_forms_of_a_delta_are_the_same(model, delta, rows):
    folder = delta / "delta" / "10.1"
    reports = [
        run("evaluate", "--model", model, "--delta", d, "--data", rows, "--json")
        for d in (delta, folder, folder / "delta.safetensors")
    ]
    assert [r.code for r in reports] == [0, 0, 0], reports[0].err
    assert reports[0].out == reports[1].out
    assert reports[2].out == reports[0].out


def test_evaluate_reports_loss_perplexity_and_accuracy(model, rows, tmp_path):
    done = run("evaluate", "--model", model, "--data", rows, "--per-example", tmp_path / "scores.jsonl", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    scores = lines((tmp_path / "scores.jsonl").read_text(encoding="utf-8"))
    assert report["examples"] == len(scores) == 3
    assert report["loss"] == pytest.approx(-sum(s["logprob"] for s in scores) / sum(s["target_tokens"] for s in scores))
    assert report["accuracy"] == sum(s.get("correct", 0) for s in scores) / 2
    assert [s.get("choice") in OPTIONS for s in scores] == [True, False, True]
    words = run("evaluate", "--model", model, "--data", rows)
    assert f"accuracy       {report['accuracy']:.4f}" in words.out


def test_a_converted_model_is_the_same(model, tmp_path):
    there, back = tmp_path / "bin", tmp_path / "back"
    assert run("model", "convert", "--model", model, "--out", there, "--to", "bin").code == 0
    assert run("model", "convert", "--model", there, "--out", back).code == 0
    assert sorted(p.name for p in there.iterdir()) == ["config.json", "pytorch_model.bin", "vocab.txt"]
    assert base_digest(find_model(back)) == base_digest(find_model(model))


def test_a_bad_row_is_named_by_file_and_line_before_any_work(model, rows, tmp_path):
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"input": "x", "<ans>": ["a"]}\n')
    out = tmp_path / "answers.jsonl"
    done = run("predict", "--model", model, "--input", rows, "--output", out)
    assert done.code == 3
    assert f"{rows}:4: <ans>" in done.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("predict", "--model", "MODEL", "--input", "nowhere.jsonl"), 102, "nowhere.jsonl"),
        (("predict", "--model", "nowhere", "--input", "ROWS"), 102, "nowhere"),
        (("predict", "--model", "MODEL", "--input", "ROWS", "--beam-size", "0"), 2, "--beam-size"),
        (("predict", "--model", "MODEL", "--input", "ROWS", "--delta", "nowhere"), 102, "nowhere"),
        (("predict", "--model", "MODEL", "--input", "ROWS", "--delta", "MODEL"), 3, "delta"),
        (("evaluate", "--model", "MODEL", "--data", "ROWS", "--format", "cpm"), 2, "ccpm"),
        (("evaluate", "--model", "MODEL", "--data", "ftp://x/y"), 2, "ftp"),
        (("model", "merge", "--model", "MODEL", "--delta", "DELTA", "--out", "MODEL"), 5, "there already"),
    ],
)
def test_mistakes_end_in_words(model, delta, rows, arguments, code, word):
    places = {"MODEL": model, "DELTA": delta, "ROWS": rows}
    done = run(*(places.get(a, a) for a in arguments))
    assert done.code == code, done.err
    assert word in done.err


def test_the_dialect_of_the_config_is_said(model, rows, tmp_path):
    assert run("model", "convert", "--model", model, "--out", tmp_path / "hub").code == 0
    hub_names = {"dim_model": "hidden_size", "num_heads": "num_attention_heads", "num_layers": "num_hidden_layers"}
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    renamed = {hub_names.get(key, key): value for key, value in config.items()}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(renamed), encoding="utf-8")
    original, hub = (run("evaluate", "--model", m, "--data", rows) for m in (model, tmp_path / "hub"))
    assert "original dialect" in original.err
    assert "hub dialect" in hub.err
    assert original.out == hub.out


def test_a_delta_of_another_base_is_warned_of(model, delta, rows, tmp_path):
    config, other = tmp_path / "config.json", tmp_path / "other"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    vocab = model / "vocab.txt"
    assert run("model", "init", "--config", config, "--vocab", vocab, "--out", other, "--seed", 1).code == 0
    done = run("evaluate", "--model", other, "--delta", delta, "--data", rows)
    assert done.code == 0
    assert "was trained on other weights" in done.err


def test_a_vocabulary_of_another_model_is_refused(model, rows, tmp_path):
    other = tmp_path / "other"
    assert run("model", "convert", "--model", model, "--out", other).code == 0
    with (other / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("extra\n")
    done = run("predict", "--model", other, "--input", rows)
    assert done.code == 3
    assert "vocab_size" in done.err


def test_the_rows_that_are_read_are_not_written_over(tmp_path, model):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ROWS[0], ensure_ascii=False) + "\n", encoding="utf-8")
    before = rows.read_bytes()
    assert run("evaluate", "--model", model, "--data", rows, "--per-example", rows).code == 5
    assert run("predict", "--model", model, "--input", rows, "--output", rows).code == 5
    assert rows.read_bytes() == before
