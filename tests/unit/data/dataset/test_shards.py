import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from cpmbee_job.data.dataset.index import INDEX, Index
from cpmbee_job.data.dataset.shards import PackedDataset, read_index
from cpmbee_job.data.dataset.table import Table
from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.prepare import Preparation, prepare
from cpmbee_job.data.prepare.shard_maker import PrepareSettings
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.errors import DataError
from cpmbee_job.store.files import FileStore

EXAMPLES = [
    {
        "input": "今天" * (number % 9),
        "options": {"<option_0>": "好", f"<option_{number % 5}>": "不"},
        "<ans>": str(number),
    }
    for number in range(60)
]


class AwayStore(FileStore):
    """A folder whose objects must be downloaded."""

    downloads = 0

    def local_path(self, _key):
        return None

    def download(self, *args, **kwargs):
        self.downloads += 1
        super().download(*args, **kwargs)


@pytest.fixture(scope="module")
def tokenizer(tiny_vocab):
    return Tokenizer.from_file(tiny_vocab)


@pytest.fixture
def prepared(tmp_path, tiny_vocab) -> FileStore:
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(example, ensure_ascii=False) for example in EXAMPLES), encoding="utf-8")
    store = FileStore(str(tmp_path / "prepared"))
    prepare(
        Preparation(
            open_source(str(path), piece_bytes=2000), PrepareSettings(max_length=128), Tokenizer.from_file(tiny_vocab)
        ),
        store,
    )
    return store


def _texts(tokenizer, table: Table) -> list[str]:
    """Return the text of each example, to compare sets of examples."""
    ends = np.cumsum(table.sample_lengths)
    return [tokenizer.decode(ids) for ids in np.split(table.input_ids, ends[:-1])]


def test_all_rows_together_hold_every_example_once(prepared, tokenizer):
    dataset = PackedDataset.open(prepared)
    assert len(dataset.indexes[0].parts) > 2
    assert dataset.num_examples == len(EXAMPLES)
    table = dataset.table(np.arange(dataset.num_rows))
    expected = Table.of([encode_example(tokenizer, example) for example in EXAMPLES])
    assert sorted(_texts(tokenizer, table)) == sorted(_texts(tokenizer, expected))
    assert table.input_ids.size == dataset.indexes[0].tokens
    assert np.bincount(table.rows, weights=table.sample_lengths).max() <= 128


def test_rows_are_returned_in_the_given_order(prepared):
    dataset = PackedDataset.open(prepared)
    chosen = np.array([dataset.num_rows - 1, 0, 1, 0])
    table = dataset.table(chosen)
    singles = [dataset.table(chosen[i : i + 1]) for i in range(4)]
    for name in Table.__dataclass_fields__:
        values = getattr(table, name)
        if name == "rows":
            assert values.tolist() == [row for row, single in enumerate(singles) for _ in single.rows]
        else:
            np.testing.assert_array_equal(values, np.concatenate([getattr(single, name) for single in singles]))
        assert values.dtype == getattr(singles[0], name).dtype


def test_remote_shards_are_fetched_once(prepared, tmp_path):
    away, cache = AwayStore(prepared.url), tmp_path / "cache"
    dataset = PackedDataset.open(away, cache=cache)
    assert away.downloads == len(dataset.indexes[0].parts)
    PackedDataset.open(away, cache=cache)
    assert away.downloads == len(dataset.indexes[0].parts)
    rows = np.arange(dataset.num_rows)
    np.testing.assert_array_equal(dataset.table(rows).input_ids, PackedDataset.open(prepared).table(rows).input_ids)


def _open_away(url: str, cache: Path) -> int:
    return PackedDataset.open(AwayStore(url), cache=cache).num_rows


def test_several_processes_share_the_cache(prepared, tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        counts = pool.starmap(_open_away, [(prepared.url, tmp_path / "cache")] * 4)
    assert set(counts) == {read_index(prepared).rows}
    assert not list((tmp_path / "cache").glob(".*.arrived"))


@pytest.mark.parametrize("store", [FileStore, AwayStore])
def test_a_modified_shard_is_rejected(prepared, tmp_path, store):
    part = tmp_path / "prepared" / read_index(prepared).parts[1].key
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(DataError, match=rf"{part.name}: size or SHA-256 differs from the index"):
        PackedDataset.open(store(prepared.url), cache=tmp_path / "cache")


@pytest.mark.parametrize("store", [FileStore, AwayStore])
def test_a_missing_shard_is_named(prepared, tmp_path, store):
    part = tmp_path / "prepared" / read_index(prepared).parts[1].key
    part.unlink()
    with pytest.raises(DataError, match=rf"{part.name}: missing"):
        PackedDataset.open(store(prepared.url), cache=tmp_path / "cache")


def test_data_without_an_index_is_rejected(prepared):
    prepared.delete(INDEX)
    with pytest.raises(DataError, match=r"index\.json: missing"):
        PackedDataset.open(prepared)


def test_an_index_of_another_version_is_rejected(prepared):
    document = json.loads(prepared.get(INDEX))
    prepared.put(INDEX, json.dumps({**document, "version": 2}).encode())
    with pytest.raises(DataError, match="format version 2, but this release reads version 1"):
        PackedDataset.open(prepared)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"version": 1}', b"\xff"])
def test_an_invalid_index_is_rejected(data):
    with pytest.raises(DataError, match=r"place: (not an index|format version)"):
        Index.from_json(data, "place")


def test_an_index_is_read_back_as_it_was_written(prepared):
    index = read_index(prepared)
    assert Index.from_json(index.to_json(), "place") == index
    document = json.loads(prepared.get(INDEX))
    assert document["totals"]["examples"] == len(EXAMPLES)
    assert document["totals"]["capacity"] == 128 * document["totals"]["rows"]


def test_the_digest_is_of_the_content(prepared, tmp_path, tiny_vocab):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "train.jsonl").rename(elsewhere / "rows.jsonl")
    store = FileStore(str(tmp_path / "again"))
    source = open_source(str(elsewhere), piece_bytes=2000)
    prepare(Preparation(source, PrepareSettings(max_length=128), Tokenizer.from_file(tiny_vocab)), store)
    assert read_index(store).content_digest == read_index(prepared).content_digest
    assert read_index(store).digest != read_index(prepared).digest
