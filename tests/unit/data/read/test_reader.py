import gzip
import json
import random
from collections import Counter

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmbee_job.data.read.lines import MAX_LINE_BYTES
from cpmbee_job.data.read.reader import Reader, Rejection, read_source
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.errors import DataError
from cpmbee_job.store.files import FileStore


class AwayStore(FileStore):
    """A folder that is read by ranges, like a bucket."""

    def local_path(self, _key):
        return None


def _example(number):
    return {"input": f"row {number} " + "x" * (number % 7), "<ans>": str(number)}


def _lines(count):
    return [json.dumps(_example(number)).encode() for number in range(count)]


def _read(url, **options):
    return [(str(record.location), record.content) for record in read_source(str(url), **options)]


def _contents(url):
    return [content for _, content in _read(url)]


def _pieces(source, store=None):
    return [
        [
            (str(record.location), record.content)
            for record in Reader(store or source.store, "raw").read(piece, Counter())
        ]
        for piece in source.pieces
    ]


def test_a_file(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n".join(_lines(3)))
    assert _read(path) == [(f"{path}:{number + 1}", _example(number)) for number in range(3)]


def test_byte_order_mark_carriage_returns_and_blank_lines(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n  \r\n".join(_lines(3)) + b"\r\n\n")
    assert _read(path) == [(f"{path}:{1 + 3 * number}", _example(number)) for number in range(3)]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".gz", ".json.zst", ".JSONL.GZ"])
def test_compressed_files(tmp_path, suffix):
    path = tmp_path / f"train{suffix}"
    compress = zstandard.compress if suffix.endswith("zst") else gzip.compress
    path.write_bytes(compress(b"\n".join(_lines(2)) + b"\n") + compress(b"\n".join(_lines(3))))  # two members
    assert _contents(path) == [_example(number) for number in (0, 1, 0, 1, 2)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_compression_is_an_error(tmp_path, suffix):
    path = tmp_path / f"train.jsonl{suffix}"
    text = b"\n".join(json.dumps({"input": str(random.Random(n).random()), "<ans>": ""}).encode() for n in range(500))
    whole = zstandard.compress(text) if suffix == ".zst" else gzip.compress(text)
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=rf"train.jsonl{suffix}: invalid compression"):
        _read(path)


@settings(deadline=None, max_examples=60)
@given(
    records=st.lists(st.integers(0, 60), max_size=40),
    ending=st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    piece_bytes=st.integers(1, 400),
    last_ending=st.booleans(),
)
def test_pieces_of_any_size_contain_the_same_records(tmp_path_factory, records, ending, piece_bytes, last_ending):
    folder = tmp_path_factory.mktemp("records")
    lines = [json.dumps({"input": "é" * size, "<ans>": ""}, ensure_ascii=False).encode() for size in records]
    (folder / "train.jsonl").write_bytes(ending.join(lines) + (ending if last_ending else b""))
    (folder / "more.jsonl").write_bytes(b"\n".join(_lines(3)))
    whole = _read(folder)
    assert len(whole) == len(records) + 3
    source = open_source(str(folder), piece_bytes=piece_bytes)
    assert max(piece.num_bytes for piece in source.pieces) <= piece_bytes
    assert [record for piece in _pieces(source) for record in piece] == whole
    assert [record for piece in _pieces(source, AwayStore(str(folder))) for record in piece] == whole


def test_many_small_files_share_a_piece(tmp_path):
    for number in range(50):
        (tmp_path / f"{number:02}.jsonl").write_bytes(b"\n".join(_lines(2)))
    source = open_source(str(tmp_path))
    assert len(source.pieces) == 1
    assert sum(len(piece) for piece in _pieces(source)) == 100


def test_empty_files_have_no_records(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "train.jsonl").write_bytes(b"\n".join(_lines(2)))
    assert len(_read(tmp_path)) == 2


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        (b'{"input": "a', "unreadable", "not JSON"),
        (b'{"input": "\xff"}', "unreadable", "not UTF-8"),
        (b'["a"]', "unreadable", "must be an object, not a list"),
        (b'{"input": "a"}', "no example", "<ans> is missing"),
        (b'{"input": ["a"], "<ans>": ""}', "no example", "input: must be text or an object, not a list"),
    ],
)
def test_an_invalid_line_is_named_and_the_others_are_read(tmp_path, line, kind, reason):
    path = tmp_path / "train.jsonl"
    good = _lines(2)
    path.write_bytes(good[0] + b"\n\n" + line + b"\n" + good[1])
    records = _read(path)
    assert [location for location, _ in records] == [f"{path}:1", f"{path}:3", f"{path}:4"]
    rejection = records[1][1]
    assert isinstance(rejection, Rejection)
    assert rejection.kind == kind
    assert reason in rejection.error.message
    assert records[2][1] == _example(1)


def test_a_line_that_is_too_long_is_named_and_skipped(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"x" * (MAX_LINE_BYTES + 10) + b"\n" + _lines(1)[0])
    (first, rejection), second = _read(path)
    assert (first, rejection.error.message) == (f"{path}:1", "line is longer than 64 MB")
    assert second == (f"{path}:2", _example(0))


def test_records_are_converted_from_their_format(tmp_path):
    path = tmp_path / "raw.jsonl"
    records = [
        {"target": "1", "input": "[翻译]话[0]甲[1]乙[答案]"},
        {"target": "7", "input": "[翻译]话[0]甲[1]乙[答案]"},
    ]
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    (_, example), (_, rejection) = _read(path, format_name="ccpm")
    assert example["<ans>"] == "<option_1>"
    assert rejection.kind == "wrong format"


def test_corrections_are_counted(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"input": 1, "more": 2, "<ans>": "x"}')
    warnings = Counter()
    assert _read(path, warnings=warnings)[0][1]["input"] == "1"
    assert warnings.total() == 2


def test_strict_reading_corrects_nothing(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"input": 1, "<ans>": "x"}')
    assert _read(path, strict=True)[0][1].kind == "no example"


def test_an_object_that_changes_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n".join(_lines(2)))
    source = open_source(str(tmp_path))
    path.write_bytes(b"\n".join(reversed(_lines(2))))
    with pytest.raises(DataError, match=r"train.jsonl: changed while it was read"):
        _pieces(source, AwayStore(str(tmp_path)))


def test_bytes_read_are_reported(tmp_path):
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(b"\n".join(_lines(500))))
    read = []
    list(read_source(str(tmp_path), on_bytes=read.append))
    assert sum(read) == (tmp_path / "train.jsonl.gz").stat().st_size


class CountingStore(AwayStore):
    """Counts the bytes that are read."""

    num_bytes = 0

    def get_range(self, key, start, length):
        self.num_bytes += length
        return super().get_range(key, start, length)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["", " ", "{}", "x" * 30]), max_size=30), st.integers(5, 60), st.booleans())
def test_locations_cost_no_reading_if_all_pieces_are_read_in_order(tmp_path_factory, lines, piece_bytes, ended):
    folder = tmp_path_factory.mktemp("data")
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n" * ended)
    (folder / "b.jsonl").write_text("{}\n")
    store = CountingStore(str(folder))
    reader = Reader(store, "raw")
    source = open_source(str(folder), piece_bytes=piece_bytes)
    records = [record for piece in source.pieces for record in reader.read(piece, Counter())]
    num_bytes = store.num_bytes
    numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
    assert [str(record.location) for record in records] == [
        *(f"{folder}/a.jsonl:{n}" for n in numbers),
        f"{folder}/b.jsonl:1",
    ]
    assert store.num_bytes == num_bytes
