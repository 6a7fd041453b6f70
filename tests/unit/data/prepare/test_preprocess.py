import json
from pathlib import Path

import pytest

from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.prepare import Preparation, prepare
from cpmbee_job.data.prepare.preprocess import preprocess
from cpmbee_job.data.prepare.shard_maker import PrepareSettings
from cpmbee_job.data.read.reader import read_source
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.errors import DataError
from cpmbee_job.store.files import FileStore

PACKED = PrepareSettings(max_length=64)


def example(number):
    return {"input": f"row {number} " + "今天" * (number % 11), "<ans>": {"a": str(number), "b": "x", "c": "好"}}


def write(path: Path, records) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def files(store):
    return {info.key: info.etag for info in store.list()}


def run(tmp_path, folder, prefix, tokenizer=None):
    settings = PrepareSettings(max_length=None)
    preparation = Preparation(open_source(str(folder)), settings, tokenizer, shard_prefix=prefix)
    return preprocess(preparation, str(tmp_path / "bin"))


@pytest.fixture
def tokenizer(tiny_vocab):
    return Tokenizer.from_file(tiny_vocab)


@pytest.fixture
def train(tmp_path) -> Path:
    return write(tmp_path / "data" / "train.jsonl", map(example, range(200)))


def test_preprocess_writes_a_folder_for_each_file(tmp_path, tokenizer):
    write(tmp_path / "bee" / "train.jsonl", map(example, range(20)))
    write(tmp_path / "bee" / "eval.jsonl", map(example, range(20, 25)))
    indexes = run(tmp_path, tmp_path / "bee", "ccpm_data", tokenizer)
    assert set(indexes) == {f"{tmp_path}/bin/train", f"{tmp_path}/bin/eval"}
    assert (tmp_path / "bin" / "train" / "ccpm_data-00000.arrow").exists()
    assert indexes[f"{tmp_path}/bin/train"].tokens > 20
    records = list(read_source(str(tmp_path / "bin" / "eval")))
    assert [record.content for record in records] == [example(number) for number in range(20, 25)]
    assert str(records[1].location) == f"{tmp_path}/bin/eval/ccpm_data-00000.arrow:2"


def test_preprocess_without_a_vocabulary(tmp_path, train):
    (index,) = run(tmp_path, train.parent, "data").values()
    assert (index.examples, index.tokens) == (200, 0)


def test_preprocess_again_changes_nothing_unless_records_changed(tmp_path, train, tokenizer):
    def again():
        return run(tmp_path, train.parent, "data", tokenizer)[f"{tmp_path}/bin/train"]

    index = again()
    before = files(FileStore(f"{tmp_path}/bin/train"))
    assert again() == index
    assert files(FileStore(f"{tmp_path}/bin/train")) == before
    write(train, [example(1)])
    assert again().examples == 1
    assert [record.content for record in read_source(f"{tmp_path}/bin/train")] == [example(1)]


def test_preprocessed_data_is_prepared_like_the_raw_records(tmp_path, train, tokenizer):
    run(tmp_path, train.parent, "data", tokenizer)
    direct = prepare(Preparation(open_source(str(train)), PACKED, tokenizer), FileStore(str(tmp_path / "rows")))
    again = prepare(
        Preparation(open_source(f"{tmp_path}/bin/train"), PACKED, tokenizer), FileStore(str(tmp_path / "again"))
    )
    assert again.content_digest == direct.content_digest


def test_a_folder_of_datasets_is_rejected_with_their_names(tmp_path, train):
    run(tmp_path, train.parent, "data")
    with pytest.raises(DataError, match="choose one of its datasets: train"):
        open_source(str(tmp_path / "bin"))


def test_two_files_for_one_folder(tmp_path, train):
    (train.parent / "train.json").write_bytes(train.read_bytes())
    with pytest.raises(DataError, match=r"several files would become .*/bin/train/"):
        run(tmp_path, train.parent, "data")
