"""Copies on this machine's disk that the original's flags ask for, beside what goes into the store."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Exports:
    tensorboard: Path | None = None
    """Folder for TensorBoard events; they stay there instead of going into the run's."""
    metrics: Path | None = None
    """File that `metrics.jsonl` is copied to."""
    best: Path | None = None
    """File that the best weights are copied to, in the original's format."""


NO_EXPORTS = Exports()
