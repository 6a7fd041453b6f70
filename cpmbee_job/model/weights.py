"""A model folder: `vocab.txt`, `config.json`, and weights as `*.safetensors` or the original `pytorch_model.bin`.

Weights move from the mapped file to their place in the model one tensor at a time, so there is never a second copy of
the model in memory. State-dict keys are the original's; those of the hub carry the prefix `cpmbee.`.
"""

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cpmbee_job.errors import ModelError
from cpmbee_job.model.config import CONFIG, SAFETENSORS_INDEX, VOCABULARY, ModelConfig
from cpmbee_job.model.cpmbee import CpmBee

_HUB_PREFIX = "cpmbee."
_TIED_HEAD = "lm_head.weight"
_EMBEDDING = "input_embedding.weight"
_LISTED = 8
"""Keys of one kind that an error spells out."""


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model, all local."""

    config: Path
    vocab: Path
    weights: tuple[Path, ...]


def find_model(folder: Path) -> ModelFiles:
    """The files of the model in `folder`; whether there is a vocabulary shows when it is read.

    Raises `ModelError` naming what else is missing.
    """
    if not folder.is_dir():
        raise ModelError(
            f"{folder}: no such folder", hint="a model is a folder with config.json, vocab.txt and weights"
        )
    config = folder / CONFIG
    if not config.is_file():
        raise ModelError(f"{config}: no such file", hint="a model folder holds a config.json")
    index = folder / SAFETENSORS_INDEX
    if index.is_file():
        weights = _shards_of(index)
    else:
        weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise ModelError(f"{folder}: no weights in it", hint="expected *.safetensors or pytorch_model.bin")
    return ModelFiles(config, folder / VOCABULARY, tuple(weights))


def load_model(files: ModelFiles, dtype: torch.dtype, device: torch.device) -> CpmBee:
    """The model with all its weights, in `dtype` on `device`, frozen or not as the caller will decide.

    Raises `ModelError` that lists missing, extra and misshapen keys, or names weights that are not finite.
    """
    config = ModelConfig.from_file(files.config)
    with torch.device("meta"):
        model = CpmBee(config)
    with open_weights(files.weights) as stored:
        _check_keys(stored, model, config, files)
        bad: list[str] = []
        for name, parameter in list(model.named_parameters()):
            raw = stored.read(name)
            if not raw.is_floating_point():
                raise ModelError(
                    f"{_names(files.weights)}: {name} holds {raw.dtype}, where weights are real numbers",
                    hint="quantised weights can't be used; take those in half precision",
                )
            tensor = raw.to(device=device, dtype=dtype)
            if not torch.isfinite(tensor).all():
                bad.append(name)
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, nn.Parameter(tensor, parameter.requires_grad))
    if bad:
        raise ModelError(
            f"{_names(files.weights)}: weights that are NaN or infinite{_listing('', bad)}",
            hint=f"the file is damaged, or its values do not fit into {dtype}",
        )
    return model


class StoredWeights:
    """Weight files that are open: names and shapes are known, a tensor is read when it is asked for."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._stack = ExitStack()
        self._readers: dict[str, Callable[[], Tensor]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in paths:
            for key, shape, reader in self._open(path):
                name = key.removeprefix(_HUB_PREFIX)
                if name in self._readers:
                    raise ModelError(f"{path}: {key} is there twice", hint="the folder mixes the weights of two models")
                self._readers[name] = reader
                self.shapes[name] = shape
        self._drop_tied_head(_names(paths))

    def __enter__(self) -> "StoredWeights":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()
        self._readers.clear()

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU in the file's dtype, backed by the mapped file where that is possible."""
        return self._readers[name]()

    def _open(self, path: Path) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Tensor]]]:
        if path.suffix == ".safetensors":
            try:
                handle = self._stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path}: {error}", hint="not a whole safetensors file; copy it again") from error
            for key in handle.keys():  # noqa: SIM118 (no mapping)
                yield key, tuple(handle.get_slice(key).get_shape()), partial(handle.get_tensor, key)
        else:
            for key, tensor in load_pickled(path).items():
                yield key, tuple(tensor.shape), partial(_itself, tensor)

    def _drop_tied_head(self, source: str) -> None:
        if _TIED_HEAD not in self._readers or _EMBEDDING not in self._readers:
            return
        if self.shapes[_TIED_HEAD] != self.shapes[_EMBEDDING] or not torch.equal(
            self.read(_TIED_HEAD), self.read(_EMBEDDING)
        ):
            raise ModelError(f"{source}: {_TIED_HEAD} differs from {_EMBEDDING}; CPM-Bee has one table for both")
        del self._readers[_TIED_HEAD], self.shapes[_TIED_HEAD]


def open_weights(paths: tuple[Path, ...]) -> StoredWeights:
    """Open weight files together. Raises `ModelError` for files that are damaged or would run code."""
    return StoredWeights(paths)


def load_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of `torch.save`, mapped where its format allows; nothing in it can run."""
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            state = torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: holds more than tensors, and reading that could run code",
            hint="save a plain dict of tensors: torch.save(dict(model.state_dict()), ...)",
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: not a whole file of torch.save ({error})", hint="copy it again") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items()):
        raise ModelError(f"{path}: not a plain dict of named tensors")
    return state


def save_weights(state: Mapping[str, Tensor], folder: Path, *, shard_bytes: int = 4 * 2**30) -> list[Path]:
    """Write `model.safetensors` into `folder`, or shards of about `shard_bytes` and their index; returns the files.

    Tensors that are mapped from a file are read a shard at a time.
    """
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in state.items():
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        return [_save_shard(shards[0], folder / "model.safetensors")]
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    paths = [_save_shard(shard, folder / name) for shard, name in zip(shards, names, strict=True)]
    document = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in state.values())},
        "weight_map": {key: name for shard, name in zip(shards, names, strict=True) for key in shard},
    }
    index = folder / SAFETENSORS_INDEX
    index.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return [*paths, index]


def save_pickled(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a plain dict of tensors as the original does (`pytorch_model.bin`, `*.pt`)."""
    # A copy of its own for each: a view would drag the whole file that it is mapped from along.
    torch.save({name: tensor.detach().cpu().clone() for name, tensor in state.items()}, path)


def base_digest(files: ModelFiles) -> str:
    """Digest (64 hex digits) of all weights: names, dtypes, shapes, content. The same in either file format."""
    with open_weights(files.weights) as stored, ThreadPoolExecutor(max_workers=4) as pool:
        lines = pool.map(lambda name: _fingerprint(name, stored.read(name)), sorted(stored.shapes))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _fingerprint(name: str, tensor: Tensor) -> str:
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(content.data).hexdigest()}\n"


def _save_shard(shard: Mapping[str, Tensor], path: Path) -> Path:
    save_file({name: t.detach().cpu().contiguous() for name, t in shard.items()}, path, metadata={"format": "pt"})
    return path


def _shards_of(index: Path) -> list[Path]:
    try:
        weight_map: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: not an index of safetensors files ({error})") from error
    # A file name, never a path: an index from elsewhere must not point out of its folder.
    if strange := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise ModelError(f"{index}: {strange[0]!r} is no file name")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ModelError(f"{index}: files that it names are missing{_listing('', missing)}", hint="copy them too")
    return [index.parent / name for name in names]


def check_model(files: ModelFiles) -> None:
    """Raise `ModelError` where weights and config do not belong together, or weights are not finite."""
    config = ModelConfig.from_file(files.config)
    with torch.device("meta"):
        model = CpmBee(config)
    with open_weights(files.weights) as stored:
        _check_keys(stored, model, config, files)
        bad = [name for name in stored.shapes if not torch.isfinite(stored.read(name)).all()]
    if bad:
        raise ModelError(f"{_names(files.weights)}: weights that are NaN or infinite{_listing('', bad)}")


def _check_keys(stored: StoredWeights, model: nn.Module, config: ModelConfig, files: ModelFiles) -> None:
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    missing = [name for name in expected if name not in stored.shapes]
    extra = [name for name in stored.shapes if name not in expected]
    misshapen = [
        f"{name} is {stored.shapes[name]}, not {shape}"
        for name, shape in expected.items()
        if stored.shapes.get(name, shape) != shape
    ]
    if missing or extra or misshapen:
        raise ModelError(
            f"{_names(files.weights)} and {files.config} do not belong together"
            f"{_listing('missing', missing)}{_listing('extra', extra)}{_listing('another shape', misshapen)}",
            hint=_why(stored, config, missing, extra),
        )


def _why(stored: StoredWeights, config: ModelConfig, missing: list[str], extra: list[str]) -> str | None:
    """The likeliest reason why weights and config do not match."""
    num_entries, *_ = stored.shapes.get(_EMBEDDING, (config.vocab_size,))
    if num_entries != config.vocab_size:
        return f"config.json says vocab_size {config.vocab_size}, the weights have {num_entries} entries"
    if any(".lora." in name for name in [*extra, *stored.shapes]):
        return "this holds LoRA weights; give them as the delta, and the base as the model"
    if missing and not extra and all(".self_att." in name or ".ffn." in name for name in missing):
        return "a pruned model's config.json says in mask_modules which blocks are absent; or num_layers is too large"
    if extra and not missing and all(name.startswith("encoder.layers.") for name in extra):
        return "num_layers in config.json is too small, or its mask_modules are another model's"
    return None


def _names(paths: tuple[Path, ...]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths)} files)"


def _listing(title: str, items: list[str]) -> str:
    """Lines to append to a message: the first few items, and how many more there are."""
    if not items:
        return ""
    shown = [*items[:_LISTED], *([f"and {len(items) - _LISTED} more"] if len(items) > _LISTED else [])]
    return (f"\n  {title}:" if title else "") + "".join(f"\n    {item}" for item in shown)
