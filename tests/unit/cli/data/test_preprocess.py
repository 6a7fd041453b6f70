import json
from pathlib import Path

from tests.cli_runner import run_cli


def test_examples_are_written_and_reported(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"input": "[翻译]a[0]b[1]c[答案]", "target": "1"}\n', encoding="utf-8")
    done = run_cli("reformat", "--input", tmp_path / "x.jsonl", "--output", tmp_path / "out")
    assert done.code == 0
    assert done.out == ""
    assert f"{tmp_path}/out/x.jsonl: 1 example" in done.err
    assert json.loads((tmp_path / "out/x.jsonl").read_text(encoding="utf-8"))["<ans>"] == "<option_1>"


def test_an_invalid_record_is_named_and_nothing_written(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{}\n")
    done = run_cli("reformat", "--input", tmp_path / "x.jsonl", "--output", tmp_path / "out")
    assert done.code == 3
    assert "x.jsonl:1: input: missing" in done.err
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{}\n")
    done = run_cli("reformat", "--output", tmp_path / "out", "--input", tmp_path / "x.jsonl", "--format", "cpm")
    assert done.code == 2
    assert "did you mean ccpm?" in done.err


def test_a_missing_input_is_not_found(tmp_path: Path) -> None:
    assert run_cli("reformat", "--input", tmp_path / "nowhere", "--output", tmp_path / "out").code == 102
