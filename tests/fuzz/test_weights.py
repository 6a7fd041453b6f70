"""Any weights file gives readable tensors, or a `ModelError`."""

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given

from cpmbee_job.errors import ModelError
from cpmbee_job.model.weights.stored import StoredWeights
from cpmbee_job.model.weights.weight_file import LocalFile, WeightFile
from tests.fuzz.fuzzing import corpus, damaged, damaged_json, examples

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.half), "c": torch.zeros(0)}
HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
    "b": {"dtype": "F16", "shape": [2], "data_offsets": [8, 12]},
}
PIECES = [
    b"c",
    b"R",
    b"\x85",
    b"(",
    b"\x8e",
    b"storage",
    b"\x50\x4b",
    b"\xff\xff\xff\x7f",
    b"ctorch\nload\n",
    b"-1",
    b".",
]


def pickled(**settings: bool) -> bytes:
    out = io.BytesIO()
    torch.save(STATE, out, **settings)
    return out.getvalue()


PICKLED = [pickled(), pickled(_use_new_zipfile_serialization=False)]
SAFETENSORS = [safetensors.torch.save(STATE, metadata={"format": "pt"})]


class DistantFile:
    """A remote file, read by ranges like one in a bucket."""

    tag = ""

    def __init__(self, file: LocalFile) -> None:
        self.name, self.size, self.read_into = file.name, file.size, file.read_into

    def is_near(self, start: int, length: int) -> bool:
        return False


def read(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    local = LocalFile(path)
    files: Sequence[WeightFile] = [local, DistantFile(local)]
    for file in files:
        try:
            weights = StoredWeights([file])
            assert weights.nbytes <= max(len(data), 1) * 64
            for name, tensor in weights.stream():
                assert tensor.shape == weights.tensors[name].shape
        except ModelError as error:
            assert str(path) in error.message  # noqa: PT017


@pytest.mark.parametrize("data", corpus("weights"))
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_known_files(tmp_path: Path, data: bytes, name: str) -> None:
    read(tmp_path / name, data)


@examples
@given(damaged(PICKLED, PIECES))
def test_damaged_files_of_torch(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    read(tmp_path_factory.getbasetemp() / "pytorch_model.bin", data)


@examples
@given(damaged(SAFETENSORS))
def test_damaged_safetensors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    read(tmp_path_factory.getbasetemp() / "model.safetensors", data)


@examples
@given(damaged_json([HEADER]))
def test_arbitrary_headers(tmp_path_factory: pytest.TempPathFactory, header: bytes) -> None:
    data = len(header).to_bytes(8, "little") + header + bytes(12)
    read(tmp_path_factory.getbasetemp() / "model.safetensors", data)
