"""Datasets in the original's format give plain data or a `DataError`: no code runs, memory is bounded."""

import os
import pickle
import pickletools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpmbee_job.data.dataset.original import META, read_original
from cpmbee_job.data.encode.examples import check_example
from cpmbee_job.errors import DataError
from cpmbee_job.store.urls import open_store
from tests.fuzz.fuzzing import corpus, damaged, damaged_json, examples

MARK = "ran"
"""Folder that the calls in the seeds would make in the working directory."""
ROWS = [
    {"input": "今天", "<ans>": {"a": "b"}},
    {"a": [1, -(2**70), 1.5, True, None, ("x", ("y", "z"))], "b": {1: b"bytes"}, "<ans>": "x" * 300},
    {"<ans>": 10**3000},
]
META_LINE = {"file_name": "part", "block_begin": 0, "block_end": 1, "nbytes": 0, "nlines": 1, "mask": False}


class Call:
    """Pickles into a call that leaves a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, (MARK,)


CALLS = [pickle.dumps([Call()], protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
SEEDS = [pickle.dumps(row, protocol) for row in ROWS for protocol in range(pickle.HIGHEST_PROTOCOL + 1)] + CALLS
OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
ARGUMENTS = [b"", b"0\n", b"posix\nmkdir\n", b"\x05ranom", b"\xff\xff\xff\x0a", (2**33).to_bytes(8, "little"), b"\x00"]
PROGRAMS = st.lists(st.sampled_from(OPCODES) | st.sampled_from(ARGUMENTS) | st.binary(max_size=3), max_size=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path, before = tmp_path_factory.mktemp("pickles"), Path.cwd()
    os.chdir(path)
    yield path
    os.chdir(before)


def is_plain(value: Any) -> bool:
    """Not into containers that stand in themselves."""
    kinds = (dict, list, str, bytes, int, float, bool, type(None))
    inner = [*value, *value.values()] if type(value) is dict else value if type(value) is list else []
    return type(value) in kinds and all(type(one) in kinds for one in inner)


def read(folder: Path, record: bytes, meta: bytes | None = None) -> None:
    block = b"\x1f" + len(record).to_bytes(4, "little") + record
    (folder / "part").write_bytes(block)
    line = str(META_LINE | {"block_size": len(block)}).replace("'", '"').replace("False", "false").encode()
    (folder / META).write_bytes(line if meta is None else meta)
    try:
        for block, number, content in read_original(open_store(str(folder))):
            assert (block, number) == (f"{folder}/part: block 0", 0)
            assert is_plain(content)
            check_example(content)
    except DataError as error:
        assert error.message  # noqa: PT017
    assert not (folder / MARK).exists()


@pytest.mark.parametrize("record", corpus("pickles"))
def test_known_records(folder: Path, record: bytes) -> None:
    tracemalloc.start()
    try:
        read(folder, record)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("record", CALLS)
def test_calls_are_refused_by_name(folder: Path, record: bytes) -> None:
    read(folder, record)
    with pytest.raises(DataError, match=r"it asks for '(posix|nt)'\.'mkdir'; none of it has run"):
        list(read_original(open_store(str(folder))))


@examples
@given(damaged(SEEDS, OPCODES + ARGUMENTS))
def test_damaged_records(folder: Path, record: bytes) -> None:
    read(folder, record)


@examples
@given(PROGRAMS.map(b"".join))
def test_any_instructions(folder: Path, program: bytes) -> None:
    read(folder, b"\x80\x04" + program + b".")


@examples
@given(damaged_json([META_LINE | {"block_size": 40}]))
def test_damaged_meta_files(folder: Path, meta: bytes) -> None:
    read(folder, SEEDS[0], meta)
