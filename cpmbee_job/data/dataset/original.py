"""Read datasets in the original code's binary format without running the code that their pickles may contain.

A dataset is a folder. `meta.bin` has a line of JSON for each data file: its range of blocks, counted over the whole
dataset, and their size. A block is a sequence of records, each the byte 0x1f, a length (4 bytes, little-endian) and a
pickle. A zero byte ends the block, and zeros pad it. No record crosses the end of its block.

A pickle can call any function while it is loaded, and allocate memory for values that it does not contain.
`_PlainUnpickler` supports only the opcodes for dicts, lists, text, bytes, numbers, booleans and None.
"""

import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from cpmbee_job import documents
from cpmbee_job.errors import DataError, StoreError
from cpmbee_job.store.base import Store

META = "meta.bin"

_RECORD = 0x1F
_END = 0x00
_LENGTH_BYTES = 4


@dataclass(frozen=True)
class DataFile:
    """One line of `meta.bin`."""

    name: str
    num_blocks: int
    block_size: int
    num_records: int
    masked: bool
    """Excluded from the dataset."""


def read_meta(folder: Store) -> list[DataFile]:
    """Read the data files of a dataset in order. Raises `DataError` for an invalid `meta.bin`."""
    name = f"{folder.url}/{META}"
    try:
        lines = folder.get(META).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text", hint="datasets of old BMTrain versions are not supported") from error
    files: list[DataFile] = []
    next_block = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            file, begin, end = _parse_meta_line(line)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{name}:{number}: not a valid description of a data file") from error
        if begin != next_block:
            raise DataError(f"{name}:{number}: block_begin: must be {next_block} (got {begin})")
        next_block = end
        files.append(file)
    if not files:
        raise DataError(f"{name}: lists no data files")
    return files


def read_original(folder: Store) -> Iterator[tuple[str, int, Any]]:
    """Yield all records of a dataset as (block, number, content), like (`file: block 0`, 3, {...}).

    Blocks are counted from 0 in their file, records from 0 in their block. Raises `DataError` for a record that is not
    plain data (nothing of it has run), and for a data file that is truncated, damaged, missing or has another number of
    records than `meta.bin`.
    """
    for file in read_meta(folder):
        if file.masked:
            continue
        name = f"{folder.url}/{file.name}"
        found = folder.info(file.name)
        if found is None:
            raise DataError(f"{name}: missing, but listed in {META}")
        expected = file.num_blocks * file.block_size
        if found.size != expected:
            raise DataError(f"{name}: must have {expected} bytes for {file.num_blocks} blocks (got {found.size})")
        num_records = 0
        for number in range(file.num_blocks):
            block = f"{name}: block {number}"
            try:
                data = folder.get_range(file.name, number * file.block_size, file.block_size)
            except StoreError as error:
                raise StoreError(f"{block}: {error.message}", hint=error.hint) from error
            for record, content in enumerate(_read_block(data, block)):
                yield block, record, content
                num_records += 1
        if num_records != file.num_records:
            raise DataError(f"{name}: must have {file.num_records} records as listed in {META} (got {num_records})")


def _parse_meta_line(line: str) -> tuple[DataFile, int, int]:
    entry = documents.from_json(line)
    name = entry["file_name"]
    numbers = [entry[key] for key in ("block_begin", "block_end", "block_size", "nlines")]
    if not isinstance(name, str) or name in ("", ".", "..", META) or "/" in name or "\\" in name:
        raise ValueError(name)
    if any(type(number) is not int or number < 0 for number in numbers) or type(entry["mask"]) is not bool:
        raise ValueError(numbers)
    begin, end, block_size, num_records = numbers
    if end <= begin or block_size == 0:
        raise ValueError(numbers)
    return DataFile(name, end - begin, block_size, num_records, entry["mask"]), begin, end


def _read_block(block: bytes, name: str) -> Iterator[Any]:
    position = 0
    record = 0
    while position < len(block):
        if block[position] == _END:
            if block.count(0, position) != len(block) - position:
                raise DataError(f"{name}: damaged: data after the end mark, which follows {record} records")
            return
        begin = position + 1 + _LENGTH_BYTES
        end = begin + int.from_bytes(block[position + 1 : begin], "little")
        if block[position] != _RECORD or end > len(block):
            raise DataError(f"{name}: damaged: record {record} does not start with a record mark")
        yield _load_plain(block[begin:end], f"{name}, record {record}")
        position = end
        record += 1


def _load_plain(data: bytes, name: str) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except _NotPlainError as error:
        hint = "use this dataset only if you trust its author, and convert it to JSON lines"
        raise DataError(f"{name}: not plain data: it asks for {error}; none of it has run", hint=hint) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{name}: damaged: {type(error).__name__} while reading it") from error


class _NotPlainError(Exception):
    """A pickle needs more than plain values; the message names what."""


def _refusal(what: str) -> Callable[[Any], None]:
    def refuse(_: Any) -> NoReturn:
        raise _NotPlainError(what)

    return refuse


def _take(length: int) -> Callable[[Any], None]:
    def take(unpickler: Any) -> None:
        unpickler.stack[-length:] = [unpickler.stack[-length:]]

    return take


_LIBRARY: dict[int, Callable[[Any], None]] = pickle._Unpickler.dispatch
_PLAIN = """PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4
    FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES
    SHORT_BINBYTES BINBYTES8 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT
    MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL INST PERSID BINPERSID"""


class _PlainUnpickler(pickle._Unpickler):
    """The Python implementation with fewer opcodes. The C implementation would allocate gigabytes for a record of eight
    bytes that announces that many values. Tuples become lists: nested shared tuples can take hours to hash as keys.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{getattr(pickle, name)[0]: _LIBRARY[getattr(pickle, name)[0]] for name in _PLAIN.split()},
        pickle.EMPTY_TUPLE[0]: _LIBRARY[pickle.EMPTY_LIST[0]],
        pickle.TUPLE[0]: _LIBRARY[pickle.LIST[0]],
        **{code[0]: _take(n) for n, code in enumerate((pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3), start=1)},
        **{code[0]: _refusal("a set") for code in (pickle.EMPTY_SET, pickle.FROZENSET)},
        pickle.BYTEARRAY8[0]: _refusal("an array of bytes"),
    }

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise _NotPlainError(f"{module_name[:60]!r}.{global_name[:60]!r}")

    def persistent_load(self, _pid: Any, /) -> NoReturn:
        raise _NotPlainError("an object outside the file")
