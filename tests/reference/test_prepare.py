"""Prepare all of CCPM, and the original's binary dataset."""

from collections import Counter

import numpy as np

from cpmbee_job.data.dataset.shards import PackedDataset
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.prepare import Preparation, prepare, prepare_below
from cpmbee_job.data.prepare.preprocess import preprocess
from cpmbee_job.data.prepare.shard_maker import PrepareSettings
from cpmbee_job.data.read.reader import read_source
from cpmbee_job.data.read.reformat import reformat
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.store.files import FileStore
from tests.conftest import needs_reference


@needs_reference
def test_all_of_ccpm_fills_its_rows(reference, tmp_path):
    tokenizer = Tokenizer.from_file(reference / "model" / "vocab.txt")
    settings = PrepareSettings(max_length=2048, format="ccpm")
    train = str(reference / "data" / "ccpm" / "train.jsonl")
    folder, index = prepare_below(Preparation(open_source(train), settings, tokenizer, workers=2), str(tmp_path))
    assert index.examples == 21_778
    assert index.target_tokens == 2 * index.examples
    assert index.tokens / index.capacity >= 0.985
    assert not index.skipped
    dataset = PackedDataset.open(FileStore(folder))
    table = dataset.table(np.arange(dataset.num_rows))
    assert table.rows.size == index.examples
    assert np.bincount(table.rows, weights=table.sample_lengths).max() <= 2048


@needs_reference
def test_the_tutorials_three_steps_prepare_the_same_examples(reference, tmp_path):
    tokenizer = Tokenizer.from_file(reference / "model" / "vocab.txt")
    raw = reference / "data" / "ccpm" / "eval.jsonl"
    _, direct = prepare_below(
        Preparation(open_source(str(raw)), PrepareSettings(max_length=2048, format="ccpm"), tokenizer),
        str(tmp_path / "direct"),
    )
    reformat(raw, tmp_path / "bee_data", "ccpm", Counter())
    preprocess(
        Preparation(
            open_source(str(tmp_path / "bee_data")), PrepareSettings(None), tokenizer, shard_prefix="ccpm_data"
        ),
        str(tmp_path / "bin_data"),
    )
    settings = PrepareSettings(max_length=2048)
    _, tutorial = prepare_below(
        Preparation(open_source(str(tmp_path / "bin_data" / "eval")), settings, tokenizer), str(tmp_path / "tutorial")
    )
    assert (tutorial.examples, tutorial.tokens) == (direct.examples, direct.tokens)


@needs_reference
def test_the_originals_binary_dataset_is_prepared_like_its_json_lines(reference, tmp_path):
    tokenizer = Tokenizer.from_file(reference / "model" / "vocab.txt")
    original = str(reference / "reference" / "original_dataset")
    lines = str(reference / "reference" / "packed_rows.jsonl")
    assert [r.content for r in read_source(original)] == [r.content for r in read_source(lines)]
    settings = PrepareSettings(max_length=512)
    ours = prepare(Preparation(open_source(lines), settings, tokenizer), FileStore(str(tmp_path / "lines")))
    theirs = prepare(Preparation(open_source(original), settings, tokenizer), FileStore(str(tmp_path / "original")))
    assert ours.content_digest == theirs.content_digest
