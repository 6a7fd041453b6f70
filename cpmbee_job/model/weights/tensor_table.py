"""Where each tensor's bytes lie, by the header of a safetensors file or the records of a file of `torch.save`."""

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from cpmbee_job import documents
from cpmbee_job.errors import ModelError
from cpmbee_job.model.weights.weight_file import LocalFile, MemoryFile, RangeReader, WeightFile, read_bytes

SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_LARGEST_HEADER = 100_000_000
_ZIP_MAGIC = b"PK\x03\x04"
_ZIP_HEADER = 30
"""Bytes of a record's own header, of fixed size; its name comes after."""


class _Entry(documents.Document):
    """Of a safetensors header: a tensor."""

    dtype: str
    shape: tuple[documents.Number, ...]
    data_offsets: tuple[documents.Number, documents.Number]


_HEADER: TypeAdapter[dict[str, _Entry | dict[str, str]]] = TypeAdapter(dict[str, _Entry | dict[str, str]])


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `nbytes` bytes from `start`, little-endian, in the order of its elements."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: WeightFile
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_table(file: WeightFile) -> list[StoredTensor]:
    """The tensors of one file, of which nothing but the table is read.

    A file of `torch.save` that can't be read by ranges (the format before torch 1.6, compressed, tensors whose elements
    do not lie one after the other) is loaded into memory. Raises `ModelError` for files that are damaged or would run
    code.
    """
    return _safetensors_table(file) if file.name.endswith(".safetensors") else _pickled_table(file)


def load_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a small file of `torch.save`; nothing in it can run. Raises `ModelError`."""
    return _unpickled(str(path), lambda: torch.load(path, map_location="cpu", weights_only=True))


def _safetensors_table(file: WeightFile) -> list[StoredTensor]:
    def damaged(what: str) -> ModelError:
        return ModelError(f"{file.name}: {what}", hint="not a whole safetensors file; copy it again")

    if file.size < 8:
        raise damaged(f"only {file.size} bytes")
    length = int.from_bytes(read_bytes(file, 0, 8), "little")
    if length > min(file.size - 8, _LARGEST_HEADER):
        raise damaged(f"a header of {length} bytes, in a file of {file.size}")
    try:
        header = _HEADER.validate_json(read_bytes(file, 8, length))
    except ValueError as error:
        raise damaged(f"its header is none ({documents.problem(error)})") from error
    header.pop("__metadata__", None)
    fields = [(name, e) for name, e in header.items() if isinstance(e, _Entry)]
    if len(fields) < len(header):
        raise damaged("its header is none")
    table, end = [], 0
    for name, entry in sorted(fields, key=lambda field: field[1].data_offsets):
        begin, stop = entry.data_offsets
        dtype = SAFETENSORS_DTYPES.get(entry.dtype)
        if dtype is None:
            raise ModelError(
                f"{file.name}: {name} holds {entry.dtype}, where weights are real numbers",
                hint="quantised weights can't be used; take those in half precision",
            )
        tensor = StoredTensor(name, dtype, entry.shape, file, 8 + length + begin)
        if begin != end or stop - begin != tensor.nbytes:
            raise damaged(f"{name} does not lie where its header says")
        table.append(tensor)
        end = stop
    if 8 + length + end != file.size:
        raise damaged(f"{file.size} bytes, its header speaks of {8 + length + end}")
    return table


def _pickled_table(file: WeightFile) -> list[StoredTensor]:
    if file.size >= len(_ZIP_MAGIC) and read_bytes(file, 0, len(_ZIP_MAGIC)) == _ZIP_MAGIC:
        ranges = RangeReader(file)
        reader = io.BufferedReader(ranges)
        try:
            records = zipfile.ZipFile(reader).infolist()
        except Exception as error:  # reading a damaged file can end in any of them
            raise _not_whole(file.name, error) from error
        if all(record.compress_type == zipfile.ZIP_STORED for record in records):
            if not isinstance(file, LocalFile):
                ranges.known = _headers(file, records)
            reader.seek(0)
            table = _zip_table(file, reader)
            if table is not None:
                return table
    source: Path | IO[bytes] = file.path if isinstance(file, LocalFile) else io.BytesIO(read_bytes(file, 0, file.size))
    state = _unpickled(file.name, lambda: torch.load(source, map_location="cpu", weights_only=True))
    memory = MemoryFile(file.name, list(state.values()))
    return [
        StoredTensor(name, tensor.dtype, tuple(tensor.shape), memory, start)
        for (name, tensor), start in zip(state.items(), memory.starts, strict=False)
    ]


def _zip_table(file: WeightFile, reader: IO[bytes]) -> list[StoredTensor] | None:
    """None where the records' bytes are not the tensors' as they are."""
    state = _unpickled(file.name, lambda: torch.load(reader, map_location="meta", weights_only=True))
    table = []
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or not tensor.is_contiguous():
            return None
        start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if start is None:
            return None
        found = StoredTensor(
            name, tensor.dtype, tuple(tensor.shape), file, start + tensor.storage_offset() * tensor.element_size()
        )
        if found.start + found.nbytes > file.size:
            raise _not_whole(file.name, f"{name} would end behind it")
        table.append(found)
    return table


def _headers(file: WeightFile, records: Iterable[zipfile.ZipInfo]) -> dict[int, bytes]:
    """The records' own headers, which tell where their content begins: thousands of tiny reads, too slow one by one."""
    starts = [record.header_offset for record in records]
    with ThreadPoolExecutor(32) as pool:
        return dict(zip(starts, pool.map(lambda start: read_bytes(file, start, _ZIP_HEADER), starts), strict=True))


def _unpickled(name: str, load: Callable[[], Any]) -> dict[str, Tensor]:
    try:
        state = load()
    except FileNotFoundError as error:
        raise ModelError(f"{name}: no such file") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{name}: holds more than tensors, and reading that could run code",
            hint="save a plain dict of tensors: torch.save(dict(model.state_dict()), ...)",
        ) from error
    except Exception as error:  # reading a damaged file can end in any of them
        raise _not_whole(name, error) from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items()):
        raise ModelError(f"{name}: not a plain dict of named tensors")
    return state


def _not_whole(name: str, reason: object) -> ModelError:
    return ModelError(f"{name}: not a whole file of torch.save ({reason})", hint="copy it again")
