"""All weights of a model as they are stored, in one or several files."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from cpmbee_job.errors import ModelError
from cpmbee_job.model.weights.pieces import PartSums, Piece, cut, digest, read_pieces, whole_sums
from cpmbee_job.model.weights.tensor_table import StoredTensor, read_table
from cpmbee_job.model.weights.weight_file import WeightFile

Progress = Callable[[int], None]
"""Called with the number of bytes that have just been read."""
_HUB_PREFIX = "cpmbee."
_TIED_HEAD = "lm_head.weight"
EMBEDDING = "input_embedding.weight"
_LISTED = 8
"""Keys of one kind that an error spells out."""


def no_progress(_num_bytes: int) -> None:
    """The null `Progress`."""


class StoredWeights:
    """The tensors of several files together, under the original's names: known is where they lie, nothing is read."""

    def __init__(self, files: Sequence[WeightFile]) -> None:
        """Raises `ModelError` for files that are damaged or would run code."""
        first = files[0].name
        self.source = first if len(files) == 1 else f"{first.rpartition('/')[0]} ({len(files)} files)"
        """For messages."""
        self.streamed_digest = ""
        """Of all weights, once they have all been streamed."""
        self.tensors: dict[str, StoredTensor] = {}
        for file in files:
            for tensor in read_table(file):
                name = tensor.name.removeprefix(_HUB_PREFIX)
                if name in self.tensors:
                    raise ModelError(
                        f"{file.name}: {tensor.name} is there twice", hint="the folder mixes the weights of two models"
                    )
                self.tensors[name] = replace(tensor, name=name)
        self._drop_tied_head()

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def layout(self) -> dict[str, Tensor]:
        """Names, shapes and dtypes of all tensors, without their content."""
        return {n: torch.empty(t.shape, dtype=t.dtype, device="meta") for n, t in self.tensors.items()}

    def pieces(self) -> list[Piece]:
        return cut(self.tensors.values())

    def digest(self, parts: Iterable[PartSums]) -> str:
        """Of all weights, by the checksums of all pieces' parts."""
        return digest(self.tensors, whole_sums(parts))

    def stream(self, progress: Progress = no_progress) -> Iterator[tuple[str, Tensor]]:
        """All tensors in the order and dtypes of the files, of which no more are in memory than the caller keeps.

        Raises `ModelError` at the end where some were not finite.
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
        self.streamed_digest = self.digest(sums)
        if bad:
            raise self.not_finite(bad, "the file is damaged")

    def not_finite(self, names: Collection[str], hint: str) -> ModelError:
        in_order = [name for name in self.tensors if name in names]
        return ModelError(f"{self.source}: weights that are NaN or infinite{listing('', in_order)}", hint=hint)

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
            raise ModelError(f"{self.source}: {_TIED_HEAD} differs from {EMBEDDING}; CPM-Bee has one table for both")


def is_finite(tensor: Tensor) -> bool:
    """In one pass and without a copy, which `isfinite` needs several of."""
    if tensor.dtype.itemsize == 1:  # 8 bits have no minimum
        tensor = tensor.half()
    return bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads that read keep the cores busy; torch's own, which wait for each other, would wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def listing(title: str, items: list[str]) -> str:
    """Lines to append to a message: the first few items, and how many more there are."""
    if not items:
        return ""
    shown = [*items[:_LISTED], *([f"and {len(items) - _LISTED} more"] if len(items) > _LISTED else [])]
    return (f"\n  {title}:" if title else "") + "".join(f"\n    {item}" for item in shown)
