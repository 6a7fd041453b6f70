import io
import json
import os
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from cpmbee_job.cli.data import encode
from cpmbee_job.cli.data.check_report import draw
from cpmbee_job.data.check.scan import Check, CheckReport, report_on
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.errors import CpmbeeError

TOO_LONG = {"q": "hello " * 40, "<ans>": "<option_1>"}


def error_of(result: Result) -> CpmbeeError:
    assert isinstance(result.exception, CpmbeeError)
    return result.exception


@pytest.fixture
def check(tiny_vocab: Path) -> Any:
    """Runs the verb on an input."""

    def run(source: Path, *arguments: object) -> Result:
        app = typer.Typer()
        encode.register(app)
        words = ["data", "check", "--vocab", tiny_vocab, "--input", source, *arguments]
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", [{"input": "今天天气<mask_0>🙂", "<ans>": "好"}, {"input": "a", "<ans>": ""}])


def test_counts_lengths_and_what_is_doubtful(check: Any, rows: Path) -> None:
    result = check(rows, "--max-length", 15)
    assert result.exit_code == 0
    assert "rows           2: 2 examples" in result.stdout
    assert "1 row of 15 tokens, 86.7% full" in result.stdout
    assert f"! too long       1 example of more than 15 tokens\n{' ' * 17}{rows}:1: 16 tokens\n" in result.stdout
    assert f"🙂 U+1F642: 1, first {rows}:1" in result.stdout
    assert "! answers        1 empty" in result.stdout


def test_one_json_document_on_stdout_and_the_summary_beside_it(check: Any, rows: Path) -> None:
    result = check(rows, "--json")
    assert result.exit_code == 0
    report = CheckReport.model_validate_json(result.stdout)
    assert (report.examples, report.max_length) == (2, 2048)
    assert report.tokens is not None
    assert report.tokens.max == 16
    assert result.stderr == "summary: all of 2 rows can be used; 0 errors, 2 warnings: unknown, answers\n"


def test_every_bad_row_is_named_after_the_summary(check: Any, rows: Path) -> None:
    with rows.open("a", encoding="utf-8") as out:
        out.write('{"a": "b"}\n{"a": {"b": ["c"]}, "<ans>": ""}\n{"<ans>": "", "<ans>": ""}\n')
    result = check(rows)
    assert error_of(result).exit_code == 3
    assert "rows           5: 2 examples, 3 that can't be used" in result.stdout
    assert "summary: 2 of 5 rows can be used; 3 errors," in result.stdout.splitlines()[-1]
    words = str(result.exception)
    assert "rows.jsonl:3: the key <ans> is missing" in words
    assert "rows.jsonl:4: a.b: a list" in words
    assert "rows.jsonl:5: <ans>: this key stands twice" in words
    assert "3 errors" in words


def test_bad_rows_of_both_sets_are_named(check: Any, rows: Path, tmp_path: Path) -> None:
    write(rows, [{"a": "b"}, {"<ans>": "x"}])
    result = check(rows, "--eval", write(tmp_path / "eval.jsonl", [{"<ans>": "y"}, {"<ans>": []}]))
    assert error_of(result).exit_code == 3
    assert "rows.jsonl:1: the key" in str(result.exception)
    assert "eval.jsonl:2: <ans>: a list" in str(result.exception)
    assert "2 errors" in str(result.exception)
    assert "summary: 1 of 2 rows and 1 of 2 rows for evaluation can be used; 2 errors," in result.stdout


def test_evaluation_rows_that_training_has(check: Any, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [{"q": "a", "<ans>": "1"}, {"q": "b", "<ans>": "1"}])
    evaluation = write(tmp_path / "eval.jsonl", [{"q": "b", "<ans>": "1"}, {"q": "a", "<ans>": "2"}])
    result = check(train, "--eval", evaluation)
    assert result.exit_code == 0
    assert "! leakage        1 evaluation example in the training data too" in result.stdout
    assert f"{evaluation}:1 is {train}:2" in result.stdout
    assert f"{evaluation}:2 asks what {train}:1 asks" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("warnings: answers, leakage")


def test_duplicates_of_one_set(check: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"q": "a", "<ans>": answer} for answer in "121"])
    result = check(path)
    assert "! duplicates     1 example repeats an earlier one" in result.stdout
    assert f"{path}:3 repeats {path}:1" in result.stdout
    assert "1 example has an earlier one's question, and another answer" in result.stdout
    assert f"{path}:2 answers {path}:1 otherwise" in result.stdout


def test_an_empty_file_has_a_summary_too(check: Any, tmp_path: Path) -> None:
    result = check(write(tmp_path / "empty.jsonl", []))
    assert error_of(result).exit_code == 3
    assert "empty.jsonl: no examples there" in str(result.exception)
    assert result.stdout.splitlines()[-1] == "summary: no rows can be used; 1 error, 0 warnings"


def test_a_folder_without_data_has_a_summary_too(check: Any, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    result = check(tmp_path)
    assert error_of(result).exit_code == 3
    assert result.stdout == "summary: stopped after 0 rows\n"


def test_raw_rows_are_read_in_their_format(check: Any, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"input": "[翻译]a[0]b[1]c[答案]", "target": 1}\n', encoding="utf-8")
    result = check(tmp_path, "--format", "ccpm", "--json")
    assert json.loads(result.stdout)["target_tokens"]["total"] == 2


def test_a_record_that_would_run_code_is_refused(check: Any, tmp_path: Path) -> None:
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
    result = check(folder)
    assert error_of(result).exit_code == 3
    assert "part: block 0, record 1: not plain data" in str(result.exception)
    assert "1 example" in result.stdout
    assert not (tmp_path / "trace").exists()


@pytest.fixture
def report(tmp_path: Path, tiny_vocab: Path) -> CheckReport:
    """Of 40 examples with four options, one too long, one whose text holds what a terminal would obey."""
    examples: list[Any] = [{"q": "今天天气" * (n % 9), "<ans>": f"<option_{n % 4}>"} for n in range(38)]
    examples += [TOO_LONG, {"q": "\x1b[31mred\u202e\tx\ny", "<ans>": "<option_0>"}]
    source = open_source(str(write(tmp_path / "x.jsonl", examples)))
    one = Check(source, Tokenizer.from_file(tiny_vocab), format_name="bee", max_length=64)
    one.read()
    return report_on(one)


def drawn(report: CheckReport, **options: Any) -> str:
    file = io.StringIO()
    draw(report, Console(file=file, highlight=False, soft_wrap=True, **options))
    return file.getvalue()


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_a_terminal_gets_no_line_that_it_would_have_to_fold(report: CheckReport, width: int) -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", drawn(report, force_terminal=True, width=width))
    assert max(map(cell_len, text.splitlines())) <= width


def test_without_a_terminal_each_finding_is_one_line(report: CheckReport) -> None:
    lines = drawn(report, width=40).splitlines()
    assert any(line.startswith("  tokens") and " max " in line for line in lines)
    assert not any(line.endswith(" ") for line in lines)
    assert "\x1b" not in "".join(lines)


def test_bars_are_as_long_as_what_they_count(report: CheckReport) -> None:
    bars: dict[str, str] = dict(re.findall(r"(<option_\d>) .*%  (\S+)", drawn(report)))
    assert set(report.answers.classes["<ans>"].values()) == {9, 11}
    assert {name: len(bar) for name, bar in bars.items()} == {
        name: -(-count * 40 // 11) for name, count in report.answers.classes["<ans>"].items()
    }


def test_targets_are_marked_without_colour_too(report: CheckReport) -> None:
    marked = [line for line in drawn(report).splitlines() if line.startswith("  →")]
    assert len(marked) == 3
    assert all(re.fullmatch(r"  →     <option_\d>│</s>", line) for line in marked)


def test_segments_have_colours(report: CheckReport) -> None:
    text = drawn(report, force_terminal=True, color_system="standard", width=80)
    keys, answers = re.findall(r"\x1b\[36m<ans>", text), re.findall(r"\x1b\[1;32m<option_\d>", text)
    assert len(keys) == len(answers) == 3


def test_nothing_of_the_data_reaches_the_terminal_raw(check: Any, tmp_path: Path) -> None:
    result = check(write(tmp_path / "x.jsonl", [{"q": "\x1b[31m\u202e\tx\ny", "<ans>": "\x1b]0;x\x07"}] * 2))
    assert not set(result.stdout) & {"\x1b", "\u202e", "\t", "\x07"}
    assert "\\n│y" in result.stdout
