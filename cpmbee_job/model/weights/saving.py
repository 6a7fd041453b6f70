"""Write weights as safetensors, or with `torch.save` as the original does."""

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cpmbee_job import documents
from cpmbee_job.model.weights.tensor_table import SAFETENSORS_DTYPES
from cpmbee_job.model.weights.weight_file import tensor_bytes
from cpmbee_job.run.model_files import SAFETENSORS_INDEX

_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}


def save_weights(
    layout: Mapping[str, Tensor],
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]] | None = None,
    *,
    shard_bytes: int = 1 << 30,
) -> list[Path]:
    """Write `model.safetensors` into `folder`, or shards of about `shard_bytes` and their index; returns the files.

    `layout` has all tensors' names, shapes and dtypes. `tensors` yields their content one by one in any order, so that
    they are never all in memory; the default is the layout's own content.
    """
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in layout.items():
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    paths = [folder / name for name in names]
    places: dict[str, tuple[BinaryIO, int]] = {}
    with ExitStack() as stack:
        for shard, path in zip(shards, paths, strict=True):
            file = stack.enter_context(path.open("wb"))
            header, starts = _header(shard)
            file.write(header)
            places |= {name: (file, len(header) + start) for name, start in starts.items()}
        for name, tensor in layout.items() if tensors is None else tensors:
            target, start = places.pop(name)
            target.seek(start)
            target.write(tensor_bytes(tensor.cpu()))
        assert not places, f"no content for {', '.join(places)}"
    if len(shards) == 1:
        return paths
    document = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in layout.values())},
        "weight_map": {key: name for shard, name in zip(shards, names, strict=True) for key in shard},
    }
    index = folder / SAFETENSORS_INDEX
    index.write_bytes(documents.to_json(document))
    return [*paths, index]


def save_pickled(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a plain dict of tensors as the original does (`pytorch_model.bin`, `*.pt`)."""
    torch.save({name: _without_base(tensor.detach().cpu()) for name, tensor in state.items()}, path)


def _without_base(tensor: Tensor) -> Tensor:
    """Copy a view: `torch.save` would write all of the tensor that it is a view of."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _header(shard: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """Return a safetensors header, and the offset of each tensor after it. The library requires all tensors in memory.
    Like there, the widest dtypes come first, so that every tensor is aligned."""
    document: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    end = 0
    for name, tensor in sorted(shard.items(), key=lambda item: (-item[1].element_size(), item[0])):
        starts[name] = end
        end += tensor.nbytes
        document[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, starts
