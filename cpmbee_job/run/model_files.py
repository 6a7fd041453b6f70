"""What a model folder consists of, by the names of its files."""

import re
from collections.abc import Collection

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
