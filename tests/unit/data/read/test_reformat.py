import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cpmbee_job.data.read.reformat import reformat
from cpmbee_job.errors import DataError, NotFoundError, PreflightError, RefusedError

RECORD = {"target": "1", "input": "[翻译]灯又亮了。[0]残灯灭[1]残灯明[答案]"}
EXAMPLE = {
    "input": "灯又亮了。",
    "options": {"<option_0>": "残灯灭", "<option_1>": "残灯明"},
    "question": "这段话形容了哪句诗的意境？",
    "<ans>": "<option_1>",
}


def write_records(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read_records(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_files_keep_their_names_and_are_utf8(tmp_path: Path) -> None:
    write_records(tmp_path / "raw/train.jsonl", RECORD, RECORD)
    write_records(tmp_path / "raw/more/eval.jsonl", RECORD)
    write_records(tmp_path / "raw/.hidden", "no record")
    read_bytes: list[int] = []
    written = reformat(tmp_path / "raw", tmp_path / "out", "ccpm", Counter(), read_bytes.append)
    assert written == {tmp_path / "out/train.jsonl": 2, tmp_path / "out/more/eval.jsonl": 1}
    assert read_records(tmp_path / "out/train.jsonl") == [EXAMPLE, EXAMPLE]
    assert "残灯".encode() in (tmp_path / "out/train.jsonl").read_bytes()
    assert sum(read_bytes) == sum(path.stat().st_size for path in (tmp_path / "raw").rglob("*.jsonl"))


def test_byte_order_mark_carriage_returns_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    line = json.dumps(RECORD).encode()
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line)
    assert reformat(tmp_path / "x.jsonl", tmp_path / "out", "ccpm", Counter()) == {tmp_path / "out/x.jsonl": 2}


def test_invalid_records_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    write_records(tmp_path / "raw/a.jsonl", RECORD)
    write_records(tmp_path / "raw/b.jsonl", RECORD, RECORD | {"target": "7"}, "x")
    write_records(tmp_path / "out/a.jsonl", "before")
    with pytest.raises(DataError) as caught:
        reformat(tmp_path / "raw", tmp_path / "out", "ccpm", Counter())
    assert "b.jsonl:2: target: must be the number of one of the 2 options" in str(caught.value)
    assert "b.jsonl:3: must be an object, not text" in str(caught.value)
    assert "2 errors; nothing was written" in str(caught.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.jsonl"]
    assert read_records(tmp_path / "out/a.jsonl") == ["before"]


def test_results_must_be_examples(tmp_path: Path) -> None:
    write_records(tmp_path / "x.jsonl", {"a": ["b"], "<ans>": ""})
    with pytest.raises(DataError, match=r"x\.jsonl:1: a: must be text or an object, not a list"):
        reformat(tmp_path / "x.jsonl", tmp_path / "out", "bee", Counter())


def test_corrections_are_counted(tmp_path: Path) -> None:
    write_records(tmp_path / "x.jsonl", {"a": 1, "<ans>": ""}, {"a": 2, "<ans>": ""})
    warnings: Counter[str] = Counter()
    reformat(tmp_path / "x.jsonl", tmp_path / "out", "bee", warnings)
    assert warnings == {"a number taken as text": 2}
    assert read_records(tmp_path / "out/x.jsonl")[0] == {"a": "1", "<ans>": ""}


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    write_records(tmp_path / "raw/x.jsonl", RECORD)
    for source, target in (("raw", "raw"), ("raw", "raw/out"), ("raw/x.jsonl", "raw"), ("raw", "raw/../raw")):
        with pytest.raises(RefusedError, match="contains the input, or lies inside it"):
            reformat(tmp_path / source, tmp_path / target, "ccpm", Counter())
    assert read_records(tmp_path / "raw/x.jsonl") == [RECORD]


def test_missing_and_empty_inputs_and_impossible_outputs_are_errors(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file or folder"):
        reformat(tmp_path / "nowhere", tmp_path / "out", "ccpm", Counter())
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="no files in it"):
        reformat(tmp_path / "empty", tmp_path / "out", "ccpm", Counter())
    source = write_records(tmp_path / "raw/x.jsonl", RECORD)
    with pytest.raises(PreflightError, match="a file has the name of a folder"):
        reformat(source, source, "ccpm", Counter())


def test_an_invalid_record_leaves_no_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "a.jsonl").write_text("no JSON\n")
    with pytest.raises(DataError):
        reformat(tmp_path / "in", tmp_path / "out" / "new", "bee", Counter())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_output_that_is_a_folder_is_rejected_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"<ans>": ""}\n')
    (tmp_path / "out" / "a.jsonl").mkdir(parents=True)
    with pytest.raises(RefusedError, match=r"out/a\.jsonl: is a folder"):
        reformat(tmp_path / "a.jsonl", tmp_path / "out", "bee", Counter())
