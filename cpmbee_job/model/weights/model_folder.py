"""A model folder: `vocab.txt`, `config.json`, and weights as `*.safetensors` or the original `pytorch_model.bin`.

Weights are read by ranges into their final tensors, so there is never a second copy of the model in memory. Each rank
reads a part and broadcasts it. State-dict keys are the original's; keys of the hub have the prefix `cpmbee.`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from cpmbee_job.errors import ModelError
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.weights.pieces import Part, PartSums, WeightPiece, digest, read_pieces, share_out
from cpmbee_job.model.weights.stored import EMBEDDING, StoredWeights, is_finite, listing, one_thread
from cpmbee_job.model.weights.weight_file import LocalFile, WeightFile
from cpmbee_job.run.model_files import CONFIG, SAFETENSORS_INDEX, VOCABULARY, indexed_weights, is_weights, weight_files
from cpmbee_job.store.base import Progress, no_progress

T = TypeVar("T")


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model. The weights may be in an object store."""

    config: Path
    vocab: Path
    weights: tuple[WeightFile, ...]


class Ranks(Protocol):
    """The ranks that load a model together."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_gather_object(self, work: Callable[[], T]) -> list[T]:
        """Return the result of `work` on each rank; an error on one rank is raised on all."""

    def broadcast(self, tensors: Iterable[tuple[Tensor, int]]) -> None:
        """Broadcast each tensor from the rank that it is paired with."""


@dataclass(frozen=True)
class Kept:
    """The elements of a weight that a rank keeps, flat: all of them, or a shard from element `start`."""

    elements: Tensor
    start: int | None = None

    def take(self, content: Tensor, begin: int) -> None:
        """Copy the elements of this shard from `content`, flat elements of the weight from number `begin`."""
        start = self.start or 0
        low, high = max(begin, start), min(begin + content.numel(), start + self.elements.numel())
        if low < high:
            self.elements[low - start : high - start].copy_(content[low - begin : high - begin])


Keep = Callable[[CpmBee], Mapping[str, Kept]]
"""Allocates a model's weights (on the device `meta`) and returns them by name; it may change the model."""


class Alone:
    """A single process."""

    rank, size = 0, 1

    def all_gather_object(self, work: Callable[[], T]) -> list[T]:
        return [work()]

    def broadcast(self, tensors: Iterable[tuple[Tensor, int]]) -> None:
        """Does nothing."""


ALONE = Alone()


def find_model(folder: Path, remote: Mapping[str, WeightFile] | None = None) -> ModelFiles:
    """Find the files of the model in `folder`; `remote`: weight files (by name) that are in an object store.

    Raises `ModelError` naming what is missing, except the vocabulary, which is checked when it is read.
    """
    if not folder.is_dir():
        raise ModelError(
            f"{folder}: no such folder", hint="a model is a folder with config.json, vocab.txt and weights"
        )
    config = folder / CONFIG
    if not config.is_file():
        raise ModelError(f"{config}: no such file", hint="a model folder requires a config.json")
    index = folder / SAFETENSORS_INDEX
    if remote is None:
        remote = {path.name: LocalFile(path) for path in folder.iterdir() if is_weights(path.name)}
    names = indexed_weights(str(index), index.read_bytes(), remote) if index.is_file() else weight_files(remote)
    if not names:
        raise ModelError(f"{folder}: contains no weights", hint="expected *.safetensors or pytorch_model.bin")
    return ModelFiles(config, folder / VOCABULARY, tuple(remote[name] for name in names))


def load_model(
    files: ModelFiles,
    dtype: torch.dtype,
    device: torch.device,
    ranks: Ranks = ALONE,
    progress: Progress = no_progress,
    keep: Keep | None = None,
) -> CpmBee:
    """Load the model in `dtype` on `device`, with all weights or with those that `keep` allocates.

    All `ranks` call it together: each reads its part of the bytes and broadcasts it. An error on one rank is raised on
    all: `ModelError` that lists missing, extra and misshapen keys, or names weights that are not finite.
    """
    opened: list[_Places] = []

    def prepare() -> tuple[str, list[bool]]:
        places = _Places(files, dtype, device)
        opened.append(places)
        return places.fingerprint(), [piece.file.is_near(piece.start, piece.nbytes) for piece in places.pieces]

    plans = ranks.all_gather_object(prepare)
    (places,) = opened
    if len({fingerprint for fingerprint, _ in plans}) > 1:
        raise ModelError(
            f"{places.stored.source}: ranks found different weights",
            hint="put the same model on every machine, and do not change it while a job starts",
        )
    places.kept = (keep or partial(keep_whole, dtype=dtype, device=device))(places.model)
    owned = list(zip(places.pieces, share_out(places.pieces, [near for _, near in plans]), strict=True))
    share = [piece for piece, owner in owned if owner == ranks.rank]
    read = ranks.all_gather_object(lambda: places.fill(share, progress))
    if bad := {name for _, names in read for name in names}:
        raise places.stored.not_finite(bad, f"the file is damaged, or its values are out of range for {dtype}")
    parts = [(part, owner) for piece, owner in owned for part in piece.parts]
    ranks.broadcast((places.of(part), owner) for part, owner in parts if places.is_whole(part))
    for part, owner in parts:
        if not places.is_whole(part):
            content = places.sent(part, mine=owner == ranks.rank)
            ranks.broadcast([(content, owner)])
            places.kept[part.tensor.name].take(content, part.begin // part.tensor.dtype.itemsize)
    places.model.base_digest = digest(places.stored.tensors, (sums for each, _ in read for sums in each))
    return places.model


def keep_whole(model: CpmBee, *, dtype: torch.dtype, device: torch.device) -> dict[str, Kept]:
    """Allocate all weights that the model has on the device `meta`."""
    kept: dict[str, Kept] = {}
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            weight = torch.empty(parameter.shape, dtype=dtype, device=device)
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, nn.Parameter(weight, parameter.requires_grad))
            kept[name] = Kept(weight.view(-1))
    return kept


class _Places:
    """A model whose weights are being read, and their final tensors. Parts of sharded weights wait in the host's
    memory until they are broadcast: 1/N of the model with N ranks."""

    def __init__(self, files: ModelFiles, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.stored = StoredWeights(files.weights)
        self.model = check_model(files, self.stored)
        for name, tensor in self.stored.tensors.items():
            if not tensor.dtype.is_floating_point:
                raise ModelError(
                    f"{self.stored.source}: {name} has {tensor.dtype}; weights must be floating point",
                    hint="quantized weights are not supported; use half-precision weights",
                )
        self.pieces = self.stored.pieces()
        self.kept: Mapping[str, Kept] = {}
        self._waiting: dict[tuple[str, int], Tensor] = {}

    def fingerprint(self) -> str:
        """Return a text that is equal on all ranks that found the same files."""
        tensors = self.stored.tensors.values()
        return repr([(t.name, t.dtype, t.shape, t.start, t.file.size, t.file.tag) for t in tensors])

    def is_whole(self, part: Part) -> bool:
        """Return whether every rank keeps the whole weight."""
        return self.kept[part.tensor.name].start is None

    def of(self, part: Part) -> Tensor:
        """Return the tensor that a part is read into."""
        if self.is_whole(part):
            return part.of(self.kept[part.tensor.name].elements)
        place = (part.tensor.name, part.begin)
        if place not in self._waiting:
            self._waiting[place] = torch.empty(part.nbytes // part.tensor.dtype.itemsize, dtype=self.dtype)
        return self._waiting[place]

    def sent(self, part: Part, *, mine: bool) -> Tensor:
        """Return the tensor to broadcast: the content on the rank that read it, an empty tensor on the others."""
        if mine:
            return self._waiting.pop((part.tensor.name, part.begin)).to(self.device)
        return torch.empty(part.nbytes // part.tensor.dtype.itemsize, dtype=self.dtype, device=self.device)

    def _read_to(self, part: Part) -> Tensor | None:
        """Return the part's final tensor if its bytes can be read into it without conversion."""
        place = self.of(part)
        return place if place.dtype == part.tensor.dtype and place.device.type == "cpu" else None

    def fill(self, pieces: Sequence[WeightPiece], progress: Progress) -> tuple[list[PartSums], set[str]]:
        """Read pieces into their tensors. Returns checksums, and the names of weights that are not finite."""
        sums: list[PartSums] = []
        bad: set[str] = set()
        with one_thread():
            for done in read_pieces(pieces, self._read_to):
                for part, content in done.contents:
                    place = self.of(part)
                    if content.data_ptr() != place.data_ptr():
                        place.copy_(content)
                    if not is_finite(place):
                        bad.add(part.tensor.name)
                sums += done.sums
                progress(done.piece.nbytes)
        return sums, bad


def check_model(files: ModelFiles, stored: StoredWeights) -> CpmBee:
    """Create the model of the config on the device `meta`. Raises `ModelError` if the stored weights do not match."""
    config = ModelConfig.from_file(files.config)
    with torch.device("meta"):
        model = CpmBee(config)
    shapes = {name: tensor.shape for name, tensor in stored.tensors.items()}
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    missing = [name for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected]
    misshapen = [
        f"{name} is {shapes[name]}, not {shape}" for name, shape in expected.items() if shapes.get(name, shape) != shape
    ]
    if missing or extra or misshapen:
        raise ModelError(
            f"{stored.source} does not match {files.config}"
            f"{listing('missing', missing)}{listing('extra', extra)}{listing('wrong shape', misshapen)}",
            hint=_likely_cause(shapes, config, missing, extra),
        )
    return model


def _likely_cause(
    shapes: Mapping[str, tuple[int, ...]], config: ModelConfig, missing: list[str], extra: list[str]
) -> str | None:
    """Return the most likely reason why weights and config do not match."""
    num_entries, *_ = shapes.get(EMBEDDING, (config.vocab_size,))
    if num_entries != config.vocab_size:
        return f"config.json has vocab_size {config.vocab_size}, the weights have {num_entries} entries"
    if any(".lora." in name for name in shapes):
        return "these are LoRA weights; use them as the delta, and the base as the model"
    if missing and not extra and all(".self_att." in name or ".ffn." in name for name in missing):
        return "list the missing blocks of a pruned model in config.json's mask_modules; or num_layers is too large"
    if extra and not missing and all(name.startswith("encoder.layers.") for name in extra):
        return "num_layers in config.json is too small, or mask_modules belongs to another model"
    return None
