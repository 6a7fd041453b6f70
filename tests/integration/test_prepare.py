"""Prepare data in S3 with several processes."""

import gzip
import json

import numpy as np

from cpmbee_job.data.check.scan import Check, report_on
from cpmbee_job.data.dataset.shards import PackedDataset
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.prepare import Preparation, prepare, prepare_below
from cpmbee_job.data.prepare.shard_maker import PrepareSettings
from cpmbee_job.data.read.reader import read_source
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.store.files import FileStore
from cpmbee_job.store.urls import open_store


def _lines(start, end):
    rows = [{"input": f"row {number} " + "今天" * (number % 11), "<ans>": str(number)} for number in range(start, end)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def test_s3_and_the_disk_contain_the_same_rows(bucket, s3_storage, tiny_vocab, tmp_path):
    tokenizer, settings = Tokenizer.from_file(tiny_vocab), PrepareSettings(max_length=64)
    data = open_store(f"{bucket}/data", s3_storage)
    for store in (data, FileStore(str(tmp_path / "data"))):
        store.put("train.jsonl", _lines(0, 200))
        store.put("more/train.jsonl.gz", gzip.compress(_lines(200, 250)))
    on_disk = prepare(
        Preparation(open_source(str(tmp_path / "data"), piece_bytes=3000), settings, tokenizer),
        FileStore(str(tmp_path / "out")),
    )
    source = open_source(data.url, s3_storage, piece_bytes=3000)
    out = open_store(f"{bucket}/out", s3_storage)
    index = prepare(Preparation(source, settings, tokenizer, storage=s3_storage, workers=2), out)
    assert index.content_digest == on_disk.content_digest

    dataset = PackedDataset.open(out, cache=tmp_path / "cache")
    table = dataset.table(np.arange(dataset.num_rows))
    assert table.rows.size == index.examples == 250
    assert len(list(read_source(data.url, s3_storage))) == 250


def test_a_dataset_is_prepared_once(bucket, s3_storage, tiny_vocab):
    tokenizer, settings = Tokenizer.from_file(tiny_vocab), PrepareSettings(max_length=64)
    open_store(bucket, s3_storage).put("train.jsonl", _lines(0, 20))
    folder, index = prepare_below(
        Preparation(open_source(f"{bucket}/train.jsonl", s3_storage), settings, tokenizer, storage=s3_storage),
        f"{bucket}/runs",
    )
    listing = list(open_store(folder, s3_storage).list())
    assert [info.key for info in listing] == ["index.json", "part-00000.arrow", "part-00000.json"]
    again = prepare_below(
        Preparation(
            open_source(f"{bucket}/train.jsonl", s3_storage), settings, tokenizer, storage=s3_storage, workers=2
        ),
        f"{bucket}/runs",
    )
    assert again == (folder, index)
    assert list(open_store(folder, s3_storage).list()) == listing


def test_a_check_reports_the_same_in_s3_and_on_disk(bucket, s3_storage, tiny_vocab, tmp_path):
    data = open_store(f"{bucket}/data", s3_storage)
    for store in (data, FileStore(str(tmp_path / "data"))):
        store.put("train.jsonl", _lines(0, 200) + _lines(7, 9))

    def found(url, storage=None):
        source = open_source(url, storage, piece_bytes=3000)
        check = Check(source, Tokenizer.from_file(tiny_vocab), format_name="bee", max_length=64)
        check.read()
        return report_on(check).model_dump_json().replace(source.store.url, "")

    in_s3 = found(f"{data.url}/train.jsonl", s3_storage)
    assert in_s3 == found(str(tmp_path / "data" / "train.jsonl"))
    assert '"repeated":2' in in_s3
