import json
import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cpmbee_job.cli import app
from cpmbee_job.data.check.report import CheckReport
from cpmbee_job.spec.training import TrainSpec
from tests.cli_runner import Done, run_cli

Check = Callable[..., Done]


@pytest.fixture
def check(tiny_vocab: Path) -> Check:
    """Runs `data check` on an input."""

    def run(source: Path, *arguments: object) -> Done:
        return run_cli("data", "check", "--vocab", tiny_vocab, "--input", source, *arguments)

    return run


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return write(
        tmp_path / "records.jsonl", [{"input": "今天天气<mask_0>🙂", "<ans>": "好"}, {"input": "a", "<ans>": ""}]
    )


def test_counts_lengths_and_warnings(check: Check, records: Path) -> None:
    done = check(records, "--max-length", 15)
    assert done.code == 0
    assert "records        2: 2 examples" in done.out
    assert "1 packed row of 15 tokens, 86.7% full" in done.out
    assert f"! too long       1 example with more than 15 tokens\n{' ' * 17}{records}:1: 16 tokens\n" in done.out
    assert f"🙂 U+1F642: 1, first {records}:1" in done.out
    assert "! answers        1 empty" in done.out


def test_json_is_one_document_and_the_summary_is_on_stderr(check: Check, records: Path) -> None:
    done = check(records, "--json")
    assert done.code == 0
    report = CheckReport.model_validate_json(done.out)
    assert (report.examples, report.max_length) == (2, 2048)
    assert report.tokens is not None
    assert report.tokens.max == 16
    assert done.err == "summary: all of 2 records are valid; 0 errors, 2 warnings: unknown, answers\n"


def test_each_invalid_record_is_named_after_the_summary(check: Check, records: Path) -> None:
    with records.open("a", encoding="utf-8") as out:
        out.write('{"a": "b"}\n{"a": {"b": ["c"]}, "<ans>": ""}\n{"<ans>": "", "<ans>": ""}\n')
    done = check(records)
    assert done.code == 3
    assert "records        5: 2 examples, 3 invalid" in done.out
    assert "summary: 2 of 5 records are valid; 3 errors," in done.out.splitlines()[-1]
    assert "records.jsonl:3: the key <ans> is missing" in done.err
    assert "records.jsonl:4: a.b: must be text or an object, not a list" in done.err
    assert "records.jsonl:5: <ans>: repeated key" in done.err
    assert "3 errors" in done.err


def test_invalid_records_of_both_sets_are_named(check: Check, records: Path, tmp_path: Path) -> None:
    write(records, [{"a": "b"}, {"<ans>": "x"}])
    done = check(records, "--eval", write(tmp_path / "eval.jsonl", [{"<ans>": "y"}, {"<ans>": []}]))
    assert done.code == 3
    assert "records.jsonl:1: the key" in done.err
    assert "eval.jsonl:2: <ans>: must be text or an object, not a list" in done.err
    assert "2 errors" in done.err
    assert "summary: 1 of 2 records and 1 of 2 records for evaluation are valid; 2 errors," in done.out


def test_evaluation_examples_in_the_training_data_are_leakage(check: Check, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [{"q": "a", "<ans>": "1"}, {"q": "b", "<ans>": "1"}])
    evaluation = write(tmp_path / "eval.jsonl", [{"q": "b", "<ans>": "1"}, {"q": "a", "<ans>": "2"}])
    done = check(train, "--eval", evaluation)
    assert done.code == 0
    assert "! leakage        evaluation examples in the training data: 1" in done.out
    assert f"{evaluation}:1 equals {train}:2" in done.out
    assert f"{evaluation}:2 and {train}:1 differ in the answer only" in done.out
    assert done.out.splitlines()[-1].endswith("warnings: answers, leakage")


def test_duplicates_in_one_set(check: Check, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"q": "a", "<ans>": answer} for answer in "121"])
    done = check(path)
    assert "! duplicates     repeated examples: 1" in done.out
    assert f"{path}:1 equals {path}:3" in done.out
    assert "examples with the question of an earlier one and another answer: 1" in done.out
    assert f"{path}:1 and {path}:2 differ in the answer only" in done.out


def test_an_empty_file_has_a_summary_too(check: Check, tmp_path: Path) -> None:
    done = check(write(tmp_path / "empty.jsonl", []))
    assert done.code == 3
    assert "empty.jsonl: no examples" in done.err
    assert done.out.splitlines()[-1] == "summary: no records are valid; 1 error, 0 warnings"


def test_a_folder_without_data_has_a_summary_too(check: Check, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    done = check(tmp_path)
    assert done.code == 3
    assert done.out == "summary: stopped after 0 records\n"


def test_raw_records_are_read_in_their_format(check: Check, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"input": "[翻译]a[0]b[1]c[答案]", "target": 1}\n', encoding="utf-8")
    done = check(tmp_path, "--format", "ccpm", "--json")
    assert json.loads(done.out)["target_tokens"]["total"] == 2


def test_a_record_that_would_run_code_is_rejected(check: Check, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'trace'}",)

    folder = tmp_path / "set"
    folder.mkdir()
    records = [pickle.dumps({"<ans>": "a"}), pickle.dumps({"<ans>": Payload()})]
    block = b"".join(b"\x1f" + len(record).to_bytes(4, "little") + record for record in records)
    (folder / "part").write_bytes(block.ljust(1024, b"\0"))
    meta = {"file_name": "part", "block_begin": 0, "block_end": 1, "nbytes": 0, "nlines": 2, "mask": False}
    (folder / "meta.bin").write_text(json.dumps(meta | {"block_size": 1024}) + "\n")
    done = check(folder)
    assert done.code == 3
    assert "part: block 0, record 1: not plain data" in done.err
    assert "1 example" in done.out
    assert not (tmp_path / "trace").exists()


def test_control_characters_in_the_data_are_escaped(check: Check, tmp_path: Path) -> None:
    done = check(write(tmp_path / "x.jsonl", [{"q": "\x1b[31m\u202e\tx\ny", "<ans>": "\x1b]0;x\x07"}] * 2))
    assert not set(done.out) & {"\x1b", "\u202e", "\t", "\x07"}
    assert "\\n│y" in done.out


def test_the_default_length_is_that_of_training() -> None:
    command: Any = typer.main.get_command(app)
    parameters = command.commands["data"].commands["check"].params
    (default,) = [one.default for one in parameters if "--max-length" in one.opts]
    assert default == TrainSpec().max_length


def test_an_unknown_format_is_a_usage_error(check: Check, records: Path) -> None:
    done = check(records, "--format", "cpm")
    assert done.code == 2
    assert "did you mean ccpm?" in done.err


def test_a_missing_input_or_vocabulary_is_not_found(check: Check, records: Path, tmp_path: Path) -> None:
    assert check(tmp_path / "nowhere").code == 102
    assert run_cli("data", "check", "--vocab", tmp_path / "nowhere", "--input", records).code == 102
