"""The training loop: read it from top to bottom.

What happens at a step is a function of the spec and the step's number alone, so that a run that is killed and goes on,
on any number of ranks, draws the curve that an undisturbed run would have drawn.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from cpmbee_job.errors import ModelError
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.process import activity
from cpmbee_job.spec import TrainSpec
from cpmbee_job.train.batches import Batch
from cpmbee_job.train.engine.interface import Engine
from cpmbee_job.train.engine.optim import learning_rate
from cpmbee_job.train.output.progress import Progress

Outcome = Literal["finished", "early stop", "stopped"]


@dataclass
class Position:
    """Where training is; with the engine's state, all that a checkpoint holds."""

    step: int = 0
    """Steps done."""
    best_step: int = 0
    """Step of the best evaluation, 0 before the first."""
    best_loss: float = float("inf")
    evaluations_without_gain: int = 0
    evaluated_step: int = 0
    """Step of the last evaluation."""

    def record(self) -> dict[str, Any]:
        """As JSON has it, where infinity has no name."""
        return asdict(self) | {"best_loss": self.best_loss if self.best_step else None}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Position":
        return cls(**record | {"best_loss": float("inf") if record["best_loss"] is None else record["best_loss"]})


class Saver(Protocol):
    """Writes what must outlive the process; every method is called by all ranks together."""

    def trained(self, batch: Batch) -> None:
        """Keep on record that this rank's share of a step is done."""

    def checkpoint(self, position: Position) -> None: ...

    def best(self, position: Position) -> None: ...


class Control(Protocol):
    """What the outside wants of the loop."""

    def wants_stop(self) -> bool: ...


def train(
    spec: TrainSpec,
    *,
    engine: Engine,
    batches: Iterable[Batch],
    eval_batches: Iterable[ModelInputs] | None,
    total_steps: int,
    position: Position,
    saver: Saver,
    progress: Progress,
    control: Control,
) -> Outcome:
    """Do the steps after `position.step` until `total_steps`, early stopping, or a stop that any rank was asked for.

    `batches` begins at step `position.step + 1`; each holds this rank's share. `position` is moved along.
    """

    def evaluation_is_due() -> bool:
        at_interval = position.step % spec.eval_interval == 0 or position.step == total_steps
        return eval_batches is not None and at_interval and position.evaluated_step < position.step

    def evaluate() -> bool:
        """Evaluate the trained weights; False when a stop came in between, and the evaluation is still due."""
        assert eval_batches is not None
        evaluated = engine.evaluate(_moving(eval_batches), control.wants_stop)
        if evaluated is None:
            return False
        is_best = evaluated.loss < position.best_loss
        position.evaluated_step = position.step
        position.evaluations_without_gain = 0 if is_best else position.evaluations_without_gain + 1
        if is_best:
            position.best_step, position.best_loss = position.step, evaluated.loss
            saver.best(position)
        progress.evaluation(position.step, evaluated, is_best)
        return True

    def out_of_patience() -> bool:
        return 0 < spec.early_stop_patience <= position.evaluations_without_gain

    if evaluation_is_due() and not evaluate():  # a process before this one was stopped before it could
        return "stopped"
    if out_of_patience():
        return "early stop"
    for batch in batches:
        # Step
        rate = learning_rate(spec, batch.step)
        try:
            result = engine.step(batch.step, batch.micro_batches, rate, control.wants_stop)
        except ModelError as error:
            rows = ", ".join(str(row) for row in batch.rows[:20]) + (", ..." if len(batch.rows) > 20 else "")
            raise ModelError(f"step {batch.step} (rows {rows}): {error.message}", hint=error.hint) from error
        position.step = batch.step
        saver.trained(batch)
        progress.step(batch.step, batch.epoch, rate, result)
        activity.moved()

        # Inspect
        if spec.inspect_iters and batch.step % spec.inspect_iters == 0:
            progress.say(_statistics_table(engine))

        # Evaluate
        stopping = result.stop
        if evaluation_is_due() and not stopping:
            stopping = not evaluate()

        # Checkpoint
        is_last = batch.step == total_steps
        if is_last or stopping or out_of_patience() or batch.step % spec.checkpoint_interval == 0:
            saver.checkpoint(position)
        if out_of_patience():
            progress.say(f"no better evaluation in {position.evaluations_without_gain}: stopping early")
            return "early stop"
        if stopping and (not is_last or evaluation_is_due()):
            return "stopped"
    return "finished"


def _moving(batches: Iterable[ModelInputs]) -> Iterator[ModelInputs]:
    """The batches; asking for the next one is progress."""
    for batch in batches:
        activity.moved()
        yield batch


def _statistics_table(engine: Engine) -> str:
    rows = engine.statistics()
    width = max(len(row.name) for row in rows)
    lines = [f"{'parameter':{width}}  {'mean':>11}  {'std':>11}  {'grad norm':>11}"]
    lines += [f"{row.name:{width}}  {row.mean:11.4e}  {row.std:11.4e}  {row.grad_norm:11.4e}" for row in rows]
    return "\n".join(lines)
