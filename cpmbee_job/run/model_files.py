"""What a model folder consists of, by the names of its files."""

import re
from collections.abc import Collection

from cpmbee_job import documents
from cpmbee_job.errors import ModelError

CONFIG = "config.json"
VOCABULARY = "vocab.txt"
SAFETENSORS_INDEX = "model.safetensors.index.json"
_WEIGHTS = (re.compile(r"[^/]+\.safetensors"), re.compile(r"pytorch_model[^/]*\.bin"))
"""The preferred format first."""


def weight_files(names: Collection[str]) -> list[str]:
    """Return the names of the weights, sorted: those in safetensors, or else the original's `pytorch_model*.bin`."""
    found = [sorted(filter(pattern.fullmatch, names)) for pattern in _WEIGHTS]
    return next(filter(None, found), [])


def is_weights(name: str) -> bool:
    """Return whether a file of that name contains weights, in either format."""
    return any(pattern.fullmatch(name) for pattern in _WEIGHTS)


def indexed_weights(index: str, content: bytes, there: Collection[str]) -> list[str]:
    """Return the weight files that `content` names, which is the index of safetensors files at `index`. Raises
    `ModelError` for an invalid index, or if one of the files is not among those `there`."""
    try:
        names: list[str] = sorted(set(documents.from_json(content)["weight_map"].values()))
        if not names:
            raise ValueError("it names no files")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: not a safetensors index ({error})") from error
    # A file name, never a path: a downloaded index must not point outside its folder.
    if strange := [name for name in names if not isinstance(name, str) or "/" in name or name in ("", ".", "..")]:
        raise ModelError(f"{index}: invalid file name {strange[0]!r}")
    if missing := [name for name in names if name not in there]:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ModelError(f"{index}: names missing files: {shown}", hint="copy them too")
    return names


def check_model(url: str, names: Collection[str]) -> None:
    """Raise `ModelError` if a file is missing. Only the pods check whether the files fit each other."""
    missing = [name for name in (VOCABULARY, CONFIG) if name not in names]
    if not any(map(is_weights, names)):
        missing.append("weights")
    if missing:
        raise ModelError(
            f"model: {url}: no {missing[-1]} in it",
            hint="name a folder with vocab.txt, config.json and weights (*.safetensors or pytorch_model.bin)",
        )
