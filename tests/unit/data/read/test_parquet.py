from collections import Counter
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.prepare import Preparation, prepare
from cpmbee_job.data.prepare.shard_maker import PrepareSettings
from cpmbee_job.data.read.reader import Reader, Rejection, read_source
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.errors import DataError, StoreError
from cpmbee_job.store.files import FileStore
from tests.unit.data.read.test_reader import AwayStore

RECORDS = [{"input": f"row {number}", "<ans>": {"a": str(number), "b": "x"}} for number in range(100)]


def write(path, records, **options):
    pq.write_table(pa.Table.from_pylist(records), path, **options)
    return path


def read(path, **options):
    return [(str(record.location), record.content) for record in read_source(str(path), **options)]


def reasons(path):
    return [f"{place}: {content.error}" for place, content in read(path) if isinstance(content, Rejection)]


def test_records_are_numbered_across_row_groups(tmp_path):
    path = write(tmp_path / "train.parquet", RECORDS, row_group_size=7)
    assert read(path) == [(f"{path}: record {number + 1}", record) for number, record in enumerate(RECORDS)]


@pytest.mark.parametrize("store", [FileStore, AwayStore])
@pytest.mark.parametrize("piece_bytes", [200, 3000, 1 << 20])
def test_every_record_is_in_exactly_one_piece(tmp_path, store, piece_bytes):
    path = write(tmp_path / "train.parquet", RECORDS, row_group_size=7)
    source = open_source(str(path), piece_bytes=piece_bytes)
    pieces = [list(Reader(store(str(tmp_path)), "raw").read(piece, Counter())) for piece in source.pieces]
    assert [record.content for piece in pieces for record in piece] == RECORDS
    assert (len(pieces) > 3) == (piece_bytes < 3000)


def test_a_folder_of_lines_and_parquet(tmp_path):
    write(tmp_path / "b.parquet", RECORDS[:2])
    (tmp_path / "a.jsonl").write_text('{"<ans>": "first"}\n')
    assert [content for _, content in read(tmp_path)] == [{"<ans>": "first"}, *RECORDS[:2]]


def test_a_null_is_a_missing_key(tmp_path):
    path = write(
        tmp_path / "a.parquet", [{"input": None, "<ans>": "x"}, {"input": "y", "o": {"p": None}, "<ans>": None}]
    )
    assert read(path)[0][1] == {"<ans>": "x"}
    assert reasons(path) == [
        f'{path}: record 2: the key <ans> is missing\n  hint: put the answer, or "", under "<ans>"'
    ]


def test_numbers_become_text_with_a_warning(tmp_path):
    path = write(tmp_path / "a.parquet", [{"n": 3, "x": 1.5, "b": True, "<ans>": "x"}])
    warnings = Counter()
    assert read(path, warnings=warnings)[0][1] == {"n": "3", "x": "1.5", "b": "true", "<ans>": "x"}
    assert warnings == {"a number taken as text": 2, "a boolean taken as text": 1}


def test_a_map_is_a_dict_of_texts(tmp_path):
    table = pa.table({"<ans>": pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string()))})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[0][1] == {"<ans>": {"k": "v"}}


@pytest.mark.parametrize(("value", "kind"), [(["x"], "a list"), (b"x", "bytes"), (date(2026, 1, 1), "date")])
def test_a_value_that_is_not_text_is_named(tmp_path, value, kind):
    path = write(tmp_path / "a.parquet", [{"<ans>": value}])
    assert f"<ans>: must be text or an object, not {kind}" in reasons(path)[0]
    assert f"{path}: record 1: " in reasons(path)[0]


def test_a_format_converts_parquet_records(tmp_path):
    path = write(tmp_path / "a.parquet", [{"input": "[翻译]今天[0]好[1]坏[答案]", "target": "1"}])
    assert read(path, format_name="ccpm")[0][1]["<ans>"] == "<option_1>"


def test_an_invalid_parquet_file_is_an_error(tmp_path):
    path = write(tmp_path / "a.parquet", RECORDS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"a\.parquet: invalid Parquet file"):
        read(path)
    path.write_bytes(whole[:50] + b"\0" * 400 + whole[450:])
    with pytest.raises(DataError, match=r"a\.parquet: invalid Parquet file"):
        read(path)


def test_two_columns_of_one_name(tmp_path):
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"]), pa.array(["z"])], names=["<ans>", "a", "a"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns are named 'a'"):
        read(tmp_path / "a.parquet")


def test_errors_of_the_store_are_raised_unchanged(tmp_path):
    class Broken(AwayStore):
        def get_range(self, key, start, length):
            raise StoreError("away")

    path = write(tmp_path / "a.parquet", RECORDS)
    piece = open_source(str(path)).pieces[0]
    with pytest.raises(StoreError, match="away"):
        list(Reader(Broken(str(tmp_path)), "raw").read(piece, Counter()))


def test_prepared_rows_do_not_depend_on_row_groups_of_one_piece(tmp_path, tiny_vocab):
    digests = set()
    for size in (3, 50):
        path = write(tmp_path / f"{size}.parquet", RECORDS, row_group_size=size)
        out = FileStore(str(tmp_path / f"out{size}"))
        index = prepare(
            Preparation(open_source(str(path)), PrepareSettings(max_length=128), Tokenizer.from_file(tiny_vocab)), out
        )
        digests.add(index.content_digest)
        assert index.examples == 100
    assert len(digests) == 1
