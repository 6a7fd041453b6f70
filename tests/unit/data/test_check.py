from collections import Counter
from pathlib import Path

import pytest

from cpmbee_job.data.check import Check
from cpmbee_job.data.examples import Example
from cpmbee_job.data.sources import Record, Rejection
from cpmbee_job.data.tokenizer import Tokenizer
from cpmbee_job.errors import DataError


@pytest.fixture
def tokenizer(tiny_vocab: Path) -> Tokenizer:
    return Tokenizer.from_file(tiny_vocab)


def record(**texts: str) -> Record:
    answer: Example = {"<ans>": texts.pop("answer", "a")}
    return Record("file:1", {**texts, **answer})


def test_lengths_and_targets_are_counted_in_tokens(tokenizer: Tokenizer) -> None:
    check = Check(tokenizer)
    check.add(record(answer="ab"))  # <s><root></s> <s><ans></s> <s>ab
    check.add(record(answer="abcd"))
    report = check.report()
    assert report["tokens"] == {
        "total": 20,
        "min": 9,
        "mean": 10.0,
        "p50": 9,
        "p90": 11,
        "p95": 11,
        "p99": 11,
        "max": 11,
    }
    assert report["target_tokens"]["total"] == 3 + 5
    assert report["rows"] == report["examples"] == 2
    assert report["too_long"] is None


def test_too_long_examples_are_counted_and_still_examples(tokenizer: Tokenizer) -> None:
    check = Check(tokenizer, max_length=9)
    check.add(record(answer="ab"))
    check.add(record(answer="abc"))
    assert check.report()["too_long"] == 1
    assert check.report()["examples"] == 2


def test_doubtful_texts_are_counted(tokenizer: Tokenizer) -> None:
    check = Check(tokenizer)
    check.add(record(q="🙂a🙂", answer=""))
    check.add(record(q="a<b<c"))
    assert check.warnings == Counter({"unknown pieces of text": 2, "empty answers": 1, "'<' taken as text": 2})


def test_an_answer_is_empty_when_all_its_texts_are(tokenizer: Tokenizer) -> None:
    check = Check(tokenizer)
    check.add(Record("file:1", {"<ans>": {"a": "", "b": {"c": ""}}}))
    check.add(Record("file:2", {"<ans>": {"a": "", "b": {"c": "x"}}}))
    assert check.warnings["empty answers"] == 1


def test_what_is_no_example_is_counted_and_named(tokenizer: Tokenizer) -> None:
    check = Check(tokenizer, strict=True)
    check.add(Record("file:1", Rejection("no example", DataError("no answer"))))
    check.add(Record("file:2", {"<ans>": "a<"}))
    check.add(record())
    report = check.report()
    assert (report["rows"], report["examples"], report["bad_rows"]) == (3, 1, 2)
    assert report["errors"][0] == "file:1: no answer"
    assert report["errors"][1].startswith("file:2: <ans>: the '<' at character 2")


def test_nothing_has_no_lengths(tokenizer: Tokenizer) -> None:
    report = Check(tokenizer).report()
    assert report["tokens"] is None
    assert report["rows"] == 0
