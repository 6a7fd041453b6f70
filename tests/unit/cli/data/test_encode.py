import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli_runner import run_cli

FIELDS = ["data", "input_ids", "input_id_subs", "context", "segment_ids", "segment_rel", "num_segments", "ext_table"]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    path.write_text('{"input": "今天天气<mask_0>🙂", "<ans>": "好"}\n{"input": "a", "<ans>": ""}\n', encoding="utf-8")
    return path


def test_each_example_is_one_line(records: Path, tiny_vocab: Path) -> None:
    done = run_cli("data", "encode", "--vocab", tiny_vocab, "--input", records)
    assert done.code == 0
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.out.splitlines()]
    assert [list(line) for line in lines] == [FIELDS, FIELDS]
    assert lines[0]["data"] == {"input": "今天天气<mask_0>🙂", "<ans>": "好"}
    assert list(lines[0]["ext_table"].values()) == ["<mask_0>", "🙂"]
    assert len(lines[1]["segment_rel"]) == lines[1]["num_segments"] ** 2


def test_a_bare_bracket_is_text_with_a_warning(tmp_path: Path, tiny_vocab: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"<ans>": "a<b <new>"}\n')
    done = run_cli("data", "encode", "--vocab", tiny_vocab, "--input", tmp_path / "x.jsonl")
    assert done.code == 0
    assert len(done.out.splitlines()) == 1
    assert "'<' taken as text: 2" in done.err


@pytest.mark.parametrize("record", ['{"<ans>": "a<b"}', '{"<ans>": "<new>"}', '{"<ans>": 1}', '{"<ans>": ["a"]}', "{"])
def test_strict_reports_file_and_line(tmp_path: Path, tiny_vocab: Path, record: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"<ans>": "a"}\n\n' + record + "\n")
    done = run_cli("data", "encode", "--vocab", tiny_vocab, "--input", tmp_path / "x.jsonl", "--strict")
    assert done.code == 3
    assert "x.jsonl:3: " in done.err


def test_a_missing_input_or_vocabulary_is_not_found(records: Path, tiny_vocab: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert run_cli("data", "encode", "--vocab", tiny_vocab, "--input", nowhere).code == 102
    assert run_cli("data", "encode", "--vocab", nowhere, "--input", records).code == 102
