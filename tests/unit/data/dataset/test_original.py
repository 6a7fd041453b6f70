import copyreg
import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from cpmbee_job.data.dataset.original import read_meta, read_original
from cpmbee_job.errors import DataError
from cpmbee_job.store.urls import open_store

BLOCK = 512


def write_dataset(folder: Path, files: dict[str, list[list[bytes]]], **changes: object) -> None:
    """Write a dataset in the original's format, from the pickles of each block of each file."""
    folder.mkdir(exist_ok=True)
    meta = []
    next_block = 0
    for name, blocks in files.items():
        data = b""
        for records in blocks:
            block = b"".join(b"\x1f" + len(record).to_bytes(4, "little") + record for record in records)
            assert len(block) < BLOCK
            data += block.ljust(BLOCK, b"\0")
        (folder / name).write_bytes(data)
        num_records = sum(map(len, blocks))
        meta.append({"file_name": name, "block_begin": next_block, "block_end": next_block + len(blocks),
                     "nbytes": 0, "nlines": num_records, "mask": False, "block_size": BLOCK} | changes)  # fmt: skip
        next_block += len(blocks)
    (folder / "meta.bin").write_text("".join(json.dumps(line) + "\n" for line in meta))


def contents(folder: Path) -> list[object]:
    return [content for _, _, content in read_original(open_store(str(folder)))]


class Call:
    """Pickles into a call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.arguments


class Persistent(pickle.Pickler):
    def persistent_id(self, obj: object) -> str | None:
        return "elsewhere" if isinstance(obj, bytearray) else None


def persistent_pickle() -> bytes:
    out = io.BytesIO()
    Persistent(out).dump({"a": bytearray(b"x")})
    return out.getvalue()


def test_records_are_read_in_order_with_their_blocks(tmp_path: Path) -> None:
    records = [{"input": f"今天{n}", "<ans>": {"a": "b"}} for n in range(5)]
    pickles = [pickle.dumps(record) for record in records]
    write_dataset(tmp_path, {"one": [pickles[:2], pickles[2:3]], "two": [pickles[3:]]})
    found = list(read_original(open_store(str(tmp_path))))
    assert [content for _, _, content in found] == records
    assert [f"{Path(block).name}, record {number}" for block, number, _ in found] == [
        "one: block 0, record 0", "one: block 0, record 1", "one: block 1, record 0",
        "two: block 0, record 0", "two: block 0, record 1",
    ]  # fmt: skip


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    record = {"a": [1, -(2**70), 1.5, True, None, ("x", "y")], "b": {"c": "文"}}
    write_dataset(tmp_path, {"data": [[pickle.dumps(record, protocol=protocol)]]})
    assert contents(tmp_path) == [record | {"a": [*record["a"][:-1], ["x", "y"]]}]  # tuples come as lists


def test_masked_files_are_skipped(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"data": [[pickle.dumps("x")]]}, mask=True)
    assert contents(tmp_path) == []


def test_the_meta_file_names_the_data_files(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"data": [[]]})
    assert [file.name for file in read_meta(open_store(str(tmp_path)))] == ["data"]


def test_a_record_that_would_run_code_is_named_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    harmless = pickle.dumps({"<ans>": ""})
    for function, arguments in (
        (os.system, (f"touch {trace}",)),
        (os.mkdir, (str(trace),)),
        (eval, (f"open({str(trace)!r}, 'w')",)),
        (np.save, (str(trace), [1])),
        (copyreg._reconstructor, (dict, dict, {})),  # type: ignore[attr-defined]
    ):
        for protocol in (0, 2, 5):
            bad = pickle.dumps({"<ans>": Call(function, *arguments)}, protocol=protocol)
            write_dataset(tmp_path, {"part": [[harmless], [harmless, harmless, bad]]})
            reader = read_original(open_store(str(tmp_path)))
            assert [next(reader)[2] for _ in range(3)] == [{"<ans>": ""}] * 3
            with pytest.raises(DataError, match=r"part: block 1, record 2: not plain data.*none of it has run"):
                next(reader)
            assert not trace.exists()
            assert not trace.with_suffix(".npy").exists()


@pytest.mark.parametrize(
    "record",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        pickle.dumps(np.float32(1)),
        pickle.dumps(Path("x")),
        pickle.dumps(print),
        pickle.dumps({1, 2}, protocol=2),
        persistent_pickle(),
    ],
)
def test_names_and_objects_are_never_looked_up(tmp_path: Path, record: bytes) -> None:
    write_dataset(tmp_path, {"part": [[record]]})
    with pytest.raises(DataError, match="block 0, record 0: not plain data"):
        contents(tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"no pickle",
        pickle.dumps("text")[:-3],
        b"\x80\x02\x82\x01.",  # an extension code that nobody registered
        b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b".",  # bytes, more than there are
        b"\x80\x04r\xff\xff\xff\xffN.",  # a memo of 4 billion entries
        b"\x80\x04Nb.",
        b"\x80\x04" + b"(" * 10 + b".",
    ],
)
def test_damaged_records_are_rejected(tmp_path: Path, record: bytes) -> None:
    write_dataset(tmp_path, {"part": [[pickle.dumps("x"), record]]})
    with pytest.raises(DataError, match="part: block 0, record 1: damaged"):
        contents(tmp_path)


def damage(path: Path, position: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[position : position + len(data)] = data
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("position", "data", "words"),
    [
        (0, b"\x07", "block 0: damaged: record 0 does not start with a record mark"),
        (1, b"\xff\xff\xff\x7f", "block 0: damaged: record 0 does not start with a record mark"),
        (0, b"\0", "block 0: damaged: data after the end mark, which follows 0 records"),
        (BLOCK - 1, b"\1", "block 0: damaged: data after the end mark, which follows 1 records"),
        (BLOCK, b"\0" * BLOCK, r"part: must have 2 records as listed in meta\.bin \(got 1\)"),
    ],
)
def test_damaged_blocks_are_rejected(tmp_path: Path, position: int, data: bytes, words: str) -> None:
    write_dataset(tmp_path, {"part": [[pickle.dumps("first")], [pickle.dumps("second")]]})
    damage(tmp_path / "part", position, data)
    with pytest.raises(DataError, match=words):
        contents(tmp_path)


def test_a_truncated_file_is_rejected_before_it_is_read(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"part": [[pickle.dumps("x")], [pickle.dumps("y")]]})
    (tmp_path / "part").write_bytes((tmp_path / "part").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"part: must have 1024 bytes for 2 blocks \(got 1023\)"):
        contents(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"part": [[pickle.dumps("x")]]})
    (tmp_path / "part").unlink()
    with pytest.raises(DataError, match=r"part: missing, but listed in meta\.bin"):
        contents(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"file_name": "../part"}, {"file_name": ""}, {"file_name": ".."}, {"file_name": 3}, {"block_end": 0},
        {"block_size": 0}, {"block_size": "512"}, {"nlines": -1}, {"mask": 1}, {"block_begin": 1, "block_end": 2},
    ],
)  # fmt: skip
def test_an_invalid_line_of_a_meta_file_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    write_dataset(tmp_path, {"part": [[pickle.dumps("x")]]}, **change)
    with pytest.raises(DataError, match=r"meta\.bin:1: "):
        contents(tmp_path)


@pytest.mark.parametrize("meta", [b"", b"\n", b"not json\n", b"{}\n", b"[1]\n", pickle.dumps([1])])
def test_an_invalid_meta_file_is_rejected(tmp_path: Path, meta: bytes) -> None:
    (tmp_path / "meta.bin").write_bytes(meta)
    with pytest.raises(DataError, match=r"meta\.bin"):
        contents(tmp_path)
