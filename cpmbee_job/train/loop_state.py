"""The state of the training loop between two steps."""

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass
class LoopState:
    """The state of the loop. With the engine's state, it is all that a checkpoint contains."""

    step: int = 0
    """Number of completed steps."""
    best_step: int = 0
    """Step of the best evaluation, 0 before the first."""
    best_loss: float = float("inf")
    evaluations_without_gain: int = 0
    evaluated_step: int = 0
    """Step of the last evaluation."""

    def record(self) -> dict[str, Any]:
        """Return the state as JSON values; JSON has no infinity."""
        return asdict(self) | {"best_loss": self.best_loss if self.best_step else None}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        return cls(**record | {"best_loss": float("inf") if record["best_loss"] is None else record["best_loss"]})
