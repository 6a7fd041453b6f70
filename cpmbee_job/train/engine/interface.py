"""The protocol of an engine: what executes the steps of a run on the devices of its world.

`torch_engine`, `deterministic_engine` and `bmtrain_engine` implement it. To add an engine, implement `Engine` (or
subclass `TorchEngine`), let `model.plan` choose it, and construct it in `build`; `loop` and `output` only use `Engine`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from cpmbee_job.model.net.inputs import ModelInputs


@dataclass(frozen=True)
class StepResult:
    """One step over all ranks. `loss` is the mean over the step's target tokens, in nats."""

    loss: float
    grad_norm: float
    """L2 norm before clipping."""
    loss_scale: float
    tokens: int
    target_tokens: int
    stop: bool
    """Whether any rank has requested a stop; the same on all ranks."""


@dataclass(frozen=True)
class EvalResult:
    """Mean loss over the target tokens of an evaluation, in nats."""

    loss: float
    target_tokens: int


@dataclass(frozen=True)
class EngineState:
    """What a checkpoint stores of an engine: tensors by name (on the CPU, fp32) and JSON values."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class ParameterStatistics:
    name: str
    mean: float
    std: float
    grad_norm: float


class Engine(Protocol):
    """Executes steps. Every method is collective: all ranks call it."""

    def step(
        self, step: int, micro_batches: Sequence[ModelInputs], learning_rate: float, wants_stop: Callable[[], bool]
    ) -> StepResult:
        """Run step number `step` (from 1) over this rank's micro-batches: forward, backward, all-reduce, clip, update.

        `step` also seeds dropout. `wants_stop` is called as late as possible before the all-reduce. If half-precision
        gradients overflow, the step is repeated with a smaller loss scale. Raises `ModelError` for a loss that is NaN
        or infinite.
        """

    def evaluate(self, micro_batches: Iterable[ModelInputs], wants_stop: Callable[[], bool]) -> EvalResult | None:
        """Return the mean loss over the micro-batches of all ranks, or None if any rank requests a stop meanwhile.

        Every rank has the same number of micro-batches."""

    def state(self) -> EngineState:
        """Return a copy that later steps do not change."""

    def load_state(self, state: EngineState) -> None: ...

    def trained_weights(self) -> dict[str, Tensor]:
        """Return the delta (in full fine-tuning: all weights) by the original's names, in fp32 on the CPU."""

    def statistics(self) -> list[ParameterStatistics]:
        """Return statistics of each trained parameter after the last step."""
