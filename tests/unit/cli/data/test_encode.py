import json
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from cpmbee_job.cli.data import encode
from cpmbee_job.errors import CpmbeeError

FIELDS = ["data", "input_ids", "input_id_subs", "context", "segment_ids", "segment_rel", "num_segments", "ext_table"]


def run(*arguments: object) -> Result:
    app = typer.Typer()
    encode.register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_of(result: Result) -> CpmbeeError:
    assert isinstance(result.exception, CpmbeeError)
    return result.exception


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": "今天天气<mask_0>🙂", "<ans>": "好"}\n{"input": "a", "<ans>": ""}\n', encoding="utf-8")
    return path


def test_encode_prints_one_line_for_each_example(rows: Path, tiny_vocab: Path) -> None:
    result = run("data", "encode", "--vocab", tiny_vocab, "--input", rows)
    assert result.exit_code == 0
    lines: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
    assert [list(line) for line in lines] == [FIELDS, FIELDS]
    assert lines[0]["data"] == {"input": "今天天气<mask_0>🙂", "<ans>": "好"}
    assert list(lines[0]["ext_table"].values()) == ["<mask_0>", "🙂"]
    assert len(lines[1]["segment_rel"]) == lines[1]["num_segments"] ** 2


def test_encode_takes_a_bare_bracket_as_text_and_says_so(tmp_path: Path, tiny_vocab: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"<ans>": "a<b <new>"}\n')
    result = run("data", "encode", "--vocab", tiny_vocab, "--input", tmp_path / "x.jsonl")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert "'<' taken as text: 2" in result.stderr


@pytest.mark.parametrize("row", ['{"<ans>": "a<b"}', '{"<ans>": "<new>"}', '{"<ans>": 1}', '{"<ans>": ["a"]}', "{"])
def test_encode_strict_ends_with_3_and_names_file_and_line(tmp_path: Path, tiny_vocab: Path, row: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"<ans>": "a"}\n\n' + row + "\n")
    result = run("data", "encode", "--vocab", tiny_vocab, "--input", tmp_path / "x.jsonl", "--strict")
    assert error_of(result).exit_code == 3
    assert "x.jsonl:3: " in str(result.exception)


def test_reformat_writes_examples_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"input": "[翻译]a[0]b[1]c[答案]", "target": "1"}\n', encoding="utf-8")
    result = run("reformat", "--input", tmp_path / "x.jsonl", "--output", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert f"{tmp_path}/out/x.jsonl: 1 example" in result.stderr
    assert json.loads((tmp_path / "out/x.jsonl").read_text(encoding="utf-8"))["<ans>"] == "<option_1>"


def test_reformat_names_a_bad_row_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{}\n")
    result = run("reformat", "--input", tmp_path / "x.jsonl", "--output", tmp_path / "out")
    assert error_of(result).exit_code == 3
    assert "x.jsonl:1: input: missing" in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", [["reformat", "--output", "out"], ["data", "check", "--vocab"]])
def test_a_format_that_is_none_is_a_usage_error(rows: Path, tiny_vocab: Path, verb: list[str]) -> None:
    arguments = [*verb, tiny_vocab] if verb[-1] == "--vocab" else verb
    result = run(*arguments, "--input", rows, "--format", "cpm")
    assert error_of(result).exit_code == 2
    assert "did you mean ccpm?" in str(result.exception)


def test_a_missing_input_or_vocabulary_is_not_found(rows: Path, tiny_vocab: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for verb in ("check", "encode"):
        assert error_of(run("data", verb, "--vocab", tiny_vocab, "--input", nowhere)).exit_code == 102
        assert error_of(run("data", verb, "--vocab", nowhere, "--input", rows)).exit_code == 102
    assert error_of(run("reformat", "--input", nowhere, "--output", tmp_path / "out")).exit_code == 102
