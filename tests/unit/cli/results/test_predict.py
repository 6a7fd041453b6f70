import json
from pathlib import Path
from typing import Any

from tests.cli_runner import run_cli
from tests.unit.cli.results.conftest import EXAMPLES


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_examples_are_printed_with_answers(model: Path, examples: Path) -> None:
    done = run_cli("predict", "--model", model, "--input", examples, "--max-length", 5)
    assert done.code == 0, done.err
    printed = lines(done.out)
    assert [list(one) for one in printed] == [list(one) for one in EXAMPLES]
    assert [one["input"] for one in printed] == [one["input"] for one in EXAMPLES]
    assert isinstance(printed[0]["<ans>"], str)
    assert set(printed[1]["<ans>"]) == {"a", "b"}


def test_output_and_batch_size_do_not_change_the_results(model: Path, examples: Path, tmp_path: Path) -> None:
    options = ("predict", "--model", model, "--input", examples, "--max-length", 5)
    out = tmp_path / "new" / "answers.jsonl"
    done = run_cli(*options, "--output", out, "--batch-size", 1)
    assert (done.code, done.out) == (0, ""), done.err
    assert out.read_text(encoding="utf-8") == run_cli(*options).out


def test_an_invalid_record_is_named_before_the_first_prediction(model: Path, examples: Path, tmp_path: Path) -> None:
    with examples.open("a", encoding="utf-8") as file:
        file.write('{"input": "x", "<ans>": ["a"]}\n')
    out = tmp_path / "answers.jsonl"
    done = run_cli("predict", "--model", model, "--input", examples, "--output", out)
    assert done.code == 3
    assert f"{examples}:4: <ans>" in done.err
    assert not out.exists()


def test_a_vocabulary_of_another_model_is_refused(model: Path, examples: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert run_cli("model", "convert", "--model", model, "--out", other).code == 0
    with (other / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("extra\n")
    done = run_cli("predict", "--model", other, "--input", examples)
    assert done.code == 3
    assert "vocab_size" in done.err


def test_an_output_that_would_overwrite_the_input_is_refused(model: Path, examples: Path) -> None:
    before = examples.read_bytes()
    assert run_cli("predict", "--model", model, "--input", examples, "--output", examples).code == 5
    assert run_cli("evaluate", "--model", model, "--data", examples, "--per-example", examples).code == 5
    assert examples.read_bytes() == before
