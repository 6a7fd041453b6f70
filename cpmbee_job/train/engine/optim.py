"""The learning rate schedule and the dynamic loss scale: plain numbers, no tensors."""

import math
from dataclasses import dataclass

from cpmbee_job.errors import ModelError
from cpmbee_job.spec import TrainSpec

_EXPONENTIAL_DECAY = 0.95


def learning_rate(train: TrainSpec, step: int) -> float:
    """Return the learning rate of step `step` (from 1), as BMTrain's `lr_scheduler` of the same style.

    The original runs its first step at the rate of iteration 0, which is 0, and logs the rate of the next iteration.
    Here a step runs at the rate that is logged for it.
    """
    iteration = train.start_step + step
    warmup, horizon = train.warmup_iters, train.lr_decay_iters or train.train_iters
    if iteration < warmup:
        peak = train.lr / math.sqrt(warmup) if train.lr_decay_style == "noam" else train.lr
        return peak * iteration / warmup
    match train.lr_decay_style:
        case "noam":
            return train.lr / math.sqrt(iteration)
        case "linear":
            return max(0.0, train.lr * (horizon - iteration) / max(1, horizon - warmup))
        case "cosine":
            progress = min(1.0, (iteration - warmup) / max(1, horizon - warmup))
            return train.lr * 0.5 * (1.0 + math.cos(progress * math.pi))
        case "exponential":
            return train.lr * _EXPONENTIAL_DECAY ** (iteration - warmup)
        case "constant":
            return train.lr


@dataclass
class LossScale:
    """Dynamic loss scale: grows after `steps` updates without overflow, shrinks on each overflow.

    Source: BMTrain's `OptimManager`. Checkpoints include the counter, so a resumed run grows it at the same step.
    """

    value: float
    factor: float
    steps: int
    clean_steps: int = 0

    def updated(self) -> None:
        """Count an update without overflow."""
        self.clean_steps += 1
        if self.clean_steps >= self.steps:
            self.value *= self.factor
            self.clean_steps = 0

    def overflowed(self) -> None:
        """Shrink the scale for a repetition of the step. Raises `ModelError` if it is 1 already."""
        if self.value <= 1.0:
            raise ModelError("the gradients are not finite at loss scale 1", hint="lower train.lr or check the data")
        self.value = max(1.0, self.value / self.factor)
        self.clean_steps = 0
