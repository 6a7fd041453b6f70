"""What executes a step. The loop knows only this; `torch_engine` is one, `bmtrain_engine` another."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from cpmbee_job.model.net.inputs import ModelInputs


@dataclass(frozen=True)
class StepResult:
    """One step over all ranks. `loss` is the mean over the step's target tokens."""

    loss: float
    grad_norm: float
    loss_scale: float
    tokens: int
    target_tokens: int
    stop: bool
    """Whether any rank was asked to stop; the same on all ranks."""


@dataclass(frozen=True)
class EvalResult:
    loss: float
    target_tokens: int


@dataclass(frozen=True)
class EngineState:
    """All that a checkpoint needs of an engine: tensors by name (on the CPU, fp32) and plain values."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class ParameterStatistics:
    name: str
    mean: float
    std: float
    grad_norm: float


class Engine(Protocol):
    """Executes steps on all ranks together; every method is collective."""

    def step(
        self, step: int, micro_batches: Sequence[ModelInputs], learning_rate: float, wants_stop: Callable[[], bool]
    ) -> StepResult:
        """Forward, backward, reduce, clip, update: step number `step` over this rank's share of the global batch; the
        number also seeds what is random in it. `wants_stop` is asked as late as can be, before the reduce. An overflow
        in half precision is done again at a smaller loss scale. Raises `ModelError` for a loss that is not finite."""

    def evaluate(self, micro_batches: Iterable[ModelInputs], wants_stop: Callable[[], bool]) -> EvalResult | None:
        """Mean loss over all ranks' micro-batches, of which all ranks have equally many; None when any rank was asked
        to stop in between."""

    def state(self) -> EngineState:
        """A copy that later steps do not change."""

    def load_state(self, state: EngineState) -> None: ...

    def trained_weights(self) -> dict[str, Tensor]:
        """The delta (or, in full fine-tuning, all weights) under the original's names, on the CPU."""

    def statistics(self) -> list[ParameterStatistics]:
        """Of each trained parameter, after the last step."""
