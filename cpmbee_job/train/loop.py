"""The training loop, from top to bottom.

A step depends only on the spec and its number. So a run that is interrupted and resumed, with any world size, has the
loss curve of an uninterrupted run.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Protocol

from cpmbee_job.errors import ModelError
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.process import activity
from cpmbee_job.spec import TrainSpec
from cpmbee_job.train.batches import Batch
from cpmbee_job.train.engine.interface import Engine
from cpmbee_job.train.engine.optim import learning_rate
from cpmbee_job.train.loop_state import LoopState
from cpmbee_job.train.output.progress import Progress

Outcome = Literal["finished", "early stop", "stopped"]


class Saver(Protocol):
    """Saves what must outlive the process. Every method is collective: all ranks call it."""

    def record_rows(self, batch: Batch) -> None:
        """Record that this rank has trained on its packed rows of a step."""

    def save_checkpoint(self, state: LoopState) -> None: ...

    def save_best(self, state: LoopState) -> None:
        """Save the trained weights as the best so far."""


def train(
    spec: TrainSpec,
    state: LoopState,
    *,
    engine: Engine,
    batches: Iterable[Batch],
    eval_batches: Iterable[ModelInputs] | None,
    total_steps: int,
    saver: Saver,
    progress: Progress,
    wants_stop: Callable[[], bool],
) -> Outcome:
    """Train from `state.step` to `total_steps`, to early stopping, or until any rank's `wants_stop` returns True.

    `batches` starts at step `state.step + 1`. Updates `state`.
    """

    def evaluation_is_due() -> bool:
        at_interval = state.step % spec.eval_interval == 0 or state.step == total_steps
        return eval_batches is not None and at_interval and state.evaluated_step < state.step

    def evaluate() -> bool:
        """Evaluate the trained weights. Return False if a stop interrupted the evaluation; it remains due."""
        assert eval_batches is not None
        evaluated = engine.evaluate(_recording_activity(eval_batches), wants_stop)
        if evaluated is None:
            return False
        is_best = evaluated.loss < state.best_loss
        state.evaluated_step = state.step
        state.evaluations_without_gain = 0 if is_best else state.evaluations_without_gain + 1
        if is_best:
            state.best_step, state.best_loss = state.step, evaluated.loss
            saver.save_best(state)
        progress.evaluation(state.step, evaluated, is_best)
        return True

    def early_stop_is_due() -> bool:
        return 0 < spec.early_stop_patience <= state.evaluations_without_gain

    if evaluation_is_due() and not evaluate():  # the previous attempt stopped before its evaluation
        return "stopped"
    if early_stop_is_due():
        return "early stop"
    for batch in batches:
        # Step
        rate = learning_rate(spec, batch.step)
        try:
            result = engine.step(batch.step, batch.micro_batches, rate, wants_stop)
        except ModelError as error:
            rows = ", ".join(str(row) for row in batch.rows[:20]) + (", ..." if len(batch.rows) > 20 else "")
            raise ModelError(f"step {batch.step} (packed rows {rows}): {error.message}", hint=error.hint) from error
        state.step = batch.step
        saver.record_rows(batch)
        progress.step(batch.step, batch.epoch, rate, result)
        activity.record()

        # Inspect
        if spec.inspect_iters and batch.step % spec.inspect_iters == 0:
            progress.log(_statistics_table(engine))

        # Evaluate
        stopping = result.stop
        if evaluation_is_due() and not stopping:
            stopping = not evaluate()

        # Checkpoint
        is_last = batch.step == total_steps
        if is_last or stopping or early_stop_is_due() or batch.step % spec.checkpoint_interval == 0:
            saver.save_checkpoint(state)
        if early_stop_is_due():
            progress.log(f"early stop: no better evaluation in the last {state.evaluations_without_gain}")
            return "early stop"
        if stopping and (not is_last or evaluation_is_due()):
            return "stopped"
    return "finished"


def _recording_activity(batches: Iterable[ModelInputs]) -> Iterator[ModelInputs]:
    """Yield the batches; each request for the next one is activity for the watchdog."""
    for batch in batches:
        activity.record()
        yield batch


def _statistics_table(engine: Engine) -> str:
    parameters = engine.statistics()
    width = max(len(p.name) for p in parameters)
    lines = [f"{'parameter':{width}}  {'mean':>11}  {'std':>11}  {'grad norm':>11}"]
    lines += [f"{p.name:{width}}  {p.mean:11.4e}  {p.std:11.4e}  {p.grad_norm:11.4e}" for p in parameters]
    return "\n".join(lines)
