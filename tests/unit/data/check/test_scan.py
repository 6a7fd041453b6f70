import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from cpmbee_job.data.check.report import CheckReport
from cpmbee_job.data.check.scan import Check, report_on
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.prepare import Preparation, prepare
from cpmbee_job.data.prepare.shard_maker import PrepareSettings
from cpmbee_job.data.read.sources import DataSource, open_source
from cpmbee_job.store.files import FileStore


@pytest.fixture
def tokenizer(tiny_vocab: Path) -> Tokenizer:
    return Tokenizer.from_file(tiny_vocab)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(path: Path, records: Iterable[Any], **options: Any) -> DataSource:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return open_source(str(path), **options)


def check(tokenizer: Tokenizer, source: DataSource, *, max_length: int = 2048, strict: bool = False) -> Check:
    one = Check(source, tokenizer, format_name="bee", max_length=max_length, strict=strict)
    one.read()
    return one


def report(tokenizer: Tokenizer, folder: Path, *records: Any, **options: Any) -> CheckReport:
    return report_on(check(tokenizer, write(folder / "file", records), **options))


def test_lengths_and_targets_are_counted_in_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    # <s><root></s> <s><ans></s> <s>ab
    found = report(tokenizer, folder, {"<ans>": "ab"}, {"<ans>": "abcd"})
    assert found.tokens is not None
    assert found.tokens.model_dump() == {
        "total": 20,
        "min": 9,
        "mean": 10.0,
        "p50": 9,
        "p90": 11,
        "p95": 11,
        "p99": 11,
        "max": 11,
    }
    assert found.target_tokens is not None
    assert found.target_tokens.total == 3 + 5
    assert found.rows == found.examples == sum(one.examples for one in found.histogram) == 2


def test_examples_that_are_too_long_are_counted_and_named(tokenizer: Tokenizer, folder: Path) -> None:
    found = report(tokenizer, folder, {"<ans>": "ab"}, {"<ans>": "abc"}, max_length=9)
    assert (found.too_long, found.examples, found.num_errors) == (1, 2, 0)
    assert [(one.location, one.tokens) for one in found.too_long_at] == [(f"{folder}/file:2", 10)]


@pytest.mark.parametrize("max_length", [48, 64, 4000])
def test_packing_equals_that_of_prepare(tiny_vocab: Path, folder: Path, max_length: int) -> None:
    lengths = random.Random(0)
    records = ({"q": "今天" * lengths.randrange(60), "<ans>": str(number)} for number in range(400))
    source = write(folder / "train.jsonl", records, piece_bytes=5000)
    settings = PrepareSettings(max_length=max_length, too_long="skip")
    index = prepare(Preparation(source, settings, Tokenizer.from_file(tiny_vocab)), FileStore(str(folder / "out")))
    found = report_on(check(Tokenizer.from_file(tiny_vocab), source, max_length=max_length))
    assert found.packing is not None
    assert len(index.parts) > 5
    assert (found.packing.rows, found.packing.capacity) == (index.rows, index.capacity)
    assert (found.packing.examples, found.packing.tokens) == (index.examples, index.tokens)
    assert found.packing.efficiency == round(index.tokens / index.capacity, 4)
    assert found.too_long == index.skipped.get("too long", 0)


def test_corrections_are_counted_as_in_prepare(tokenizer: Tokenizer, folder: Path) -> None:
    found = report(tokenizer, folder, {"q": "a<b<问题>", "n": 1, "<ans>": None})
    assert found.warnings == {"'<' taken as text": 2, "a number taken as text": 1, "null taken as text": 1}


def test_strict_treats_corrections_as_errors(tokenizer: Tokenizer, folder: Path) -> None:
    found = report(tokenizer, folder, {"<ans>": "a<"}, {"<ans>": 1}, {"<ans>": ""}, strict=True)
    assert (found.rows, found.examples, found.bad_rows, found.num_errors) == (3, 1, 2, 2)
    assert found.errors[0].startswith(f"{folder}/file:1: <ans>: the '<' at character 2")
    assert found.errors[1].startswith(f"{folder}/file:2: <ans>: must be text, not a number")


def test_a_file_without_examples_is_an_error(tokenizer: Tokenizer, folder: Path) -> None:
    found = report(tokenizer, folder)
    assert (found.rows, found.errors) == (0, (f"{folder}/file: no examples",))
    assert (found.tokens, found.packing, found.views) == (None, None, ())


def test_an_unreadable_piece_does_not_affect_the_others(tokenizer: Tokenizer, folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "a.jsonl.gz").write_bytes(b"\x1f\x8b no gzip")
    source = write(folder / "data" / "b.jsonl", [{"<ans>": "a"}] * 3)
    found = report_on(check(tokenizer, open_source(str(folder / "data"), piece_bytes=source.num_bytes)))
    assert (found.examples, found.num_errors) == (3, 1)
    assert "a.jsonl.gz: invalid compression" in found.errors[0]


def test_three_examples_are_shown_in_the_order_of_the_file(tokenizer: Tokenizer, folder: Path) -> None:
    records = [{"q": "a", "<ans>": str(number)} for number in range(50)]
    found, again = report(tokenizer, folder, *records), report(tokenizer, folder, *records)
    lines = [int(one.location.rpartition(":")[2]) for one in found.views]
    assert len(set(lines)) == 3
    assert lines == sorted(lines)
    assert ["".join(one.segments[-1].tokens) for one in found.views] == [f"{line - 1}</s>" for line in lines]
    assert found == again


def test_a_dataset_of_two_examples_shows_both(tokenizer: Tokenizer, folder: Path) -> None:
    assert len(report(tokenizer, folder, {"<ans>": "a"}, {"<ans>": "b"}).views) == 2


def test_unknown_characters_and_answers_are_reported(tokenizer: Tokenizer, folder: Path) -> None:
    found = report(tokenizer, folder, {"q": "🙂", "<ans>": "a"}, {"q": "b", "<ans>": "a"})
    assert [(one.character, one.first) for one in found.unknown.most_frequent] == [("🙂", f"{folder}/file:1")]
    assert found.answers.constant[0].text == "a"


def test_duplicates_are_named_by_file_and_line_across_pieces(tokenizer: Tokenizer, folder: Path) -> None:
    records = [{"q": f"row {number}", "<ans>": "a"} for number in range(300)]
    records[250] = records[40]
    source = write(folder / "file.jsonl", records, piece_bytes=1000)
    assert len(source.pieces) > 5
    found = report_on(check(tokenizer, source)).duplicates
    assert (found.repeated, found.repeated_at) == (1, ((f"{folder}/file.jsonl:41", f"{folder}/file.jsonl:251"),))


def test_training_and_evaluation_are_compared(tokenizer: Tokenizer, folder: Path) -> None:
    train = write(folder / "train", [{"q": "a", "<ans>": "1"}, {"q": "b", "<ans>": "1"}, {"q": "b", "<ans>": "1"}])
    evaluation = write(folder / "eval", [{"q": "b", "<ans>": "1"}, {"q": "a", "<ans>": "2"}, {"q": "c", "<ans>": 1}])
    found = report_on(check(tokenizer, train), check(tokenizer, evaluation))
    assert found.duplicates.repeated == 1
    assert found.eval is not None
    assert (found.eval.examples, found.eval.duplicates.any) == (3, False)
    assert found.leakage is not None
    assert (found.leakage.repeated, found.leakage.contradicting) == (1, 1)
    assert found.leakage.repeated_at == ((f"{folder}/eval:1", f"{folder}/train:2"),)
    assert found.leakage.contradicting_at == ((f"{folder}/eval:2", f"{folder}/train:1"),)


def test_invalid_records_are_not_duplicates(tokenizer: Tokenizer, folder: Path) -> None:
    found = report(tokenizer, folder, {"a": "b"}, {"a": "b"}, {"<ans>": "x"})
    assert (found.bad_rows, found.duplicates.any) == (2, False)
