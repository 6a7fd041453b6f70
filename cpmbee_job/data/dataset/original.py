"""Data sets in the original code's binary format, read without ever running what they hold.

A data set is a folder. `meta.bin` has one line of JSON for each data file: which blocks are its own, counted over
the whole data set, and their size. A block is a sequence of records, each the byte 0x1f, a length (4 bytes,
little-endian) and a pickle; a zero byte ends the block, and zeros fill it up. No record goes over its block's end.

Pickles can name any function to be called while they are read, and have memory set aside for values that never come.
`_PlainUnpickler` knows only the instructions that make dicts, lists, text, bytes, numbers, booleans and None.
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
    """Taken out of the data set, without being removed."""


def read_meta(folder: Store) -> list[DataFile]:
    """The data files of a data set, in its order. `DataError` where `meta.bin` does not say what it should."""
    place = f"{folder.url}/{META}"
    try:
        lines = folder.get(META).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 text", hint="data sets of old BMTrain versions can't be read") from error
    files: list[DataFile] = []
    next_block = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            file, begin, end = _parse_meta_line(line)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{place}:{number}: not the description of a data file") from error
        if begin != next_block:
            raise DataError(f"{place}:{number}: begins with block {begin}, where block {next_block} should follow")
        next_block = end
        files.append(file)
    if not files:
        raise DataError(f"{place}: names no data file")
    return files


def read_original(folder: Store) -> Iterator[tuple[str, Any]]:
    """All records of a data set with their places (`file: block 0, record 3`, both counted in the file from 0).

    Raises `DataError` for a record that is not plain data (nothing of it has run), and for a data file that is cut
    short, damaged, missing, or does not hold as many records as `meta.bin` says.
    """
    for file in read_meta(folder):
        if file.masked:
            continue
        place = f"{folder.url}/{file.name}"
        found = folder.info(file.name)
        if found is None:
            raise DataError(f"{place}: named by {META}, but not there")
        expected = file.num_blocks * file.block_size
        if found.size != expected:
            raise DataError(f"{place}: {found.size} bytes, where {META} promises {file.num_blocks} blocks: {expected}")
        num_records = 0
        for number in range(file.num_blocks):
            try:
                block = folder.get_range(file.name, number * file.block_size, file.block_size)
            except StoreError as error:
                raise StoreError(f"{place}: block {number}: {error.message}", hint=error.hint) from error
            for record, content in enumerate(_read_block(block, f"{place}: block {number}")):
                yield f"{place}: block {number}, record {record}", content
                num_records += 1
        if num_records != file.num_records:
            raise DataError(f"{place}: {num_records} records, where {META} promises {file.num_records}")


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


def _read_block(block: bytes, place: str) -> Iterator[Any]:
    position = 0
    record = 0
    while position < len(block):
        if block[position] == _END:
            if block.count(0, position) != len(block) - position:
                raise DataError(f"{place}: damaged: something stands behind its end, after {record} records")
            return
        begin = position + 1 + _LENGTH_BYTES
        end = begin + int.from_bytes(block[position + 1 : begin], "little")
        if block[position] != _RECORD or end > len(block):
            raise DataError(f"{place}: damaged: no record begins where record {record} should")
        yield _load_plain(block[begin:end], f"{place}, record {record}")
        position = end
        record += 1


def _load_plain(data: bytes, place: str) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except _NotPlainError as error:
        message = f"{place}: not plain data: it asks for {error}, and nothing of it has been run"
        raise DataError(
            message, hint="use this data set only if you trust whoever made it, and write it anew"
        ) from error
    except Exception as error:  # reading a damaged pickle can end in any of them
        raise DataError(f"{place}: damaged: {type(error).__name__} while reading it") from error


class _NotPlainError(Exception):
    """A pickle that needs more than plain values; the message says what."""


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
    """The library's reader in Python: the one in C takes gigabytes where a record of eight bytes says that it will have
    as many values. Tuples come as lists: as keys, those that share their parts could take hours to hash."""

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
