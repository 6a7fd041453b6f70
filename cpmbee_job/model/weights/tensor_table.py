"""Locate each tensor's bytes in a safetensors file (by its header) or a `torch.save` file (by its zip entries)."""

import io
import math
import pickle
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO

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
"""Size of the fixed part of a zip entry's header; the entry's name follows."""


class _Entry(documents.Document):
    """A tensor in a safetensors header."""

    dtype: str
    shape: tuple[documents.Number, ...]
    data_offsets: tuple[documents.Number, documents.Number]


_HEADER: TypeAdapter[dict[str, _Entry | dict[str, str]]] = TypeAdapter(dict[str, _Entry | dict[str, str]])


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `nbytes` bytes from `start`, little-endian, contiguous."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: WeightFile
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_table(file: WeightFile) -> list[StoredTensor]:
    """Locate the tensors of a file without reading their content.

    A `torch.save` file that cannot be read by ranges (the format before torch 1.6, compressed entries, tensors that are
    not contiguous) is loaded into memory. Raises `ModelError` for damaged files, and for files that would run code.
    """
    return _safetensors_table(file) if file.name.endswith(".safetensors") else _pickled_table(file)


def _safetensors_table(file: WeightFile) -> list[StoredTensor]:
    def damaged(what: str) -> ModelError:
        return ModelError(f"{file.name}: {what}", hint="incomplete or damaged safetensors file; copy it again")

    if file.size < 8:
        raise damaged(f"only {file.size} bytes")
    length = int.from_bytes(read_bytes(file, 0, 8), "little")
    if length > min(file.size - 8, _LARGEST_HEADER):
        raise damaged(f"header of {length} bytes in a file of {file.size} bytes")
    try:
        header = _HEADER.validate_json(read_bytes(file, 8, length))
    except ValueError as error:
        raise damaged(f"invalid header ({documents.problem(error)})") from error
    header.pop("__metadata__", None)
    fields = [(name, e) for name, e in header.items() if isinstance(e, _Entry)]
    if len(fields) < len(header):
        raise damaged("invalid header")
    table, end = [], 0
    for name, entry in sorted(fields, key=lambda field: field[1].data_offsets):
        begin, stop = entry.data_offsets
        dtype = SAFETENSORS_DTYPES.get(entry.dtype)
        if dtype is None:
            raise ModelError(
                f"{file.name}: {name} has {entry.dtype}; weights must be floating point",
                hint="quantized weights are not supported; use half-precision weights",
            )
        tensor = StoredTensor(name, dtype, entry.shape, file, 8 + length + begin)
        if begin != end or stop - begin != tensor.nbytes:
            raise damaged(f"the header gives a wrong position or size for {name}")
        table.append(tensor)
        end = stop
    if 8 + length + end != file.size:
        raise damaged(f"{file.size} bytes, but {8 + length + end} according to its header")
    return table


def _pickled_table(file: WeightFile) -> list[StoredTensor]:
    ranges = RangeReader(file)
    reader = io.BufferedReader(ranges)
    if file.size >= len(_ZIP_MAGIC) and read_bytes(file, 0, len(_ZIP_MAGIC)) == _ZIP_MAGIC:
        try:
            records = zipfile.ZipFile(reader).infolist()
        except Exception as error:  # a damaged file can raise any of them
            raise _not_whole(file.name, error) from error
        if all(record.compress_type == zipfile.ZIP_STORED for record in records):
            if not isinstance(file, LocalFile):
                ranges.known = _headers(file, records)
            table = _zip_table(file, reader)
            if table is not None:
                return table
    return [
        StoredTensor(name, tensor.dtype, tuple(tensor.shape), MemoryFile(file.name, tensor), 0)
        for name, tensor in _unpickled(file.name, reader, "cpu").items()
    ]


def _zip_table(file: WeightFile, reader: IO[bytes]) -> list[StoredTensor] | None:
    """Return None if the zip entries do not contain the tensors' plain bytes."""
    table = []
    for name, tensor in _unpickled(file.name, reader, "meta").items():
        if tensor.layout is not torch.strided or tensor.is_quantized or not tensor.is_contiguous():
            return None
        start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if start is None:
            return None
        found = StoredTensor(
            name, tensor.dtype, tuple(tensor.shape), file, start + tensor.storage_offset() * tensor.element_size()
        )
        if found.start + found.nbytes > file.size:
            raise _not_whole(file.name, f"{name} would end after the end of the file")
        table.append(found)
    return table


def _headers(file: WeightFile, records: Iterable[zipfile.ZipInfo]) -> dict[int, bytes]:
    """Read the zip entries' headers, which give the start of their content: thousands of small reads in parallel."""
    starts = [record.header_offset for record in records]
    with ThreadPoolExecutor(32) as pool:
        return dict(zip(starts, pool.map(lambda start: read_bytes(file, start, _ZIP_HEADER), starts), strict=True))


def _unpickled(name: str, reader: IO[bytes], device: str) -> dict[str, Tensor]:
    reader.seek(0)
    try:
        state = torch.load(reader, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{name}: contains more than tensors, and loading it could run code",
            hint="save a plain dict of tensors: torch.save(dict(model.state_dict()), ...)",
        ) from error
    except Exception as error:  # a damaged file can raise any of them
        raise _not_whole(name, error) from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items()):
        raise ModelError(f"{name}: not a plain dict of named tensors")
    return state


def _not_whole(name: str, reason: object) -> ModelError:
    return ModelError(f"{name}: incomplete or damaged torch.save file ({reason})", hint="copy it again")
