"""The stored weights of a model, in one or several files."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from cpmbee_job.errors import ModelError
from cpmbee_job.model.weights.pieces import PartSums, WeightPiece, cut, digest, read_pieces, whole_sums
from cpmbee_job.model.weights.tensor_table import StoredTensor, read_table
from cpmbee_job.model.weights.weight_file import WeightFile
from cpmbee_job.store.base import Progress, no_progress

_HUB_PREFIX = "cpmbee."
_TIED_HEAD = "lm_head.weight"
EMBEDDING = "input_embedding.weight"
_LISTED = 8
"""Maximum number of keys listed in an error."""


class StoredWeights:
    """The tensors of several files under the original's names. Only their positions are read."""

    def __init__(self, files: Sequence[WeightFile]) -> None:
        """Raises `ModelError` for files that are damaged or would run code."""
        first = files[0].name
        self.source = first if len(files) == 1 else f"{first.rpartition('/')[0]} ({len(files)} files)"
        """For error messages."""
        self.streamed_digest = ""
        """Digest of all weights, set when all have been streamed."""
        self.tensors: dict[str, StoredTensor] = {}
        for file in files:
            for tensor in read_table(file):
                name = tensor.name.removeprefix(_HUB_PREFIX)
                if name in self.tensors:
                    raise ModelError(
                        f"{file.name}: duplicate tensor {tensor.name}",
                        hint="the folder mixes the weights of two models",
                    )
                self.tensors[name] = replace(tensor, name=name)
        self._drop_tied_head()

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def layout(self) -> dict[str, Tensor]:
        """All tensors on the device `meta`: names, shapes and dtypes."""
        return {n: torch.empty(t.shape, dtype=t.dtype, device="meta") for n, t in self.tensors.items()}

    def pieces(self) -> list[WeightPiece]:
        return cut(self.tensors.values())

    def stream(self, progress: Progress = no_progress) -> Iterator[tuple[str, Tensor]]:
        """Yield all tensors in the order and dtypes of the files. Only those that the caller keeps stay in memory.

        Raises `ModelError` at the end if some are not finite.
        """
        for name, tensor in self.tensors.items():
            if not tensor.nbytes:
                yield name, torch.empty(tensor.shape, dtype=tensor.dtype)
        growing: dict[str, Tensor] = {}
        sums: list[PartSums] = []
        bad: set[str] = set()
        for done in read_pieces(self.pieces()):
            grown = []
            with one_thread():
                for part, content in done.contents:
                    name, dtype = part.tensor.name, part.tensor.dtype
                    if part.begin == 0:
                        growing[name] = torch.empty(part.tensor.shape, dtype=dtype)
                    part.of(growing[name].view(-1)).copy_(content)
                    if dtype.is_floating_point and not is_finite(content):
                        bad.add(name)
                    if part.begin + part.nbytes == part.tensor.nbytes:
                        grown.append((name, growing.pop(name)))
            sums += done.sums
            progress(done.piece.nbytes)
            yield from grown
        self.streamed_digest = digest(self.tensors, sums)
        if bad:
            raise self.not_finite(bad, "the file is damaged")

    def not_finite(self, names: Collection[str], hint: str) -> ModelError:
        in_order = [name for name in self.tensors if name in names]
        return ModelError(f"{self.source}: NaN or infinite weights{listing('', in_order)}", hint=hint)

    def _drop_tied_head(self) -> None:
        if _TIED_HEAD not in self.tensors or EMBEDDING not in self.tensors:
            return
        head, embedding = self.tensors.pop(_TIED_HEAD), self.tensors[EMBEDDING]
        if (head.file, head.start) == (embedding.file, embedding.start):
            return
        same = (head.shape, head.dtype) == (embedding.shape, embedding.dtype)
        if same:
            sums = whole_sums(sums for done in read_pieces(cut([head, embedding])) for sums in done.sums)
            same = sums[_TIED_HEAD] == sums[EMBEDDING]
        if not same:
            raise ModelError(f"{self.source}: {_TIED_HEAD} differs from {EMBEDDING}, but CPM-Bee requires equal ones")


def is_finite(tensor: Tensor) -> bool:
    """Check in one pass and without a copy; `isfinite` alone needs several copies."""
    if tensor.dtype.itemsize == 1:  # aminmax does not support 8-bit dtypes
        tensor = tensor.half()
    return bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: reader threads keep the cores busy, and torch's threads would wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def listing(title: str, items: list[str]) -> str:
    """Format lines to append to a message: the first items, and the number of further ones."""
    if not items:
        return ""
    shown = [*items[:_LISTED], *([f"and {len(items) - _LISTED} more"] if len(items) > _LISTED else [])]
    return (f"\n  {title}:" if title else "") + "".join(f"\n    {item}" for item in shown)
