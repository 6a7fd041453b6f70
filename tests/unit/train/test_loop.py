"""When the loop evaluates, saves and stops, with a fake engine."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from torch import Tensor

from cpmbee_job.errors import ModelError
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.spec import TrainSpec
from cpmbee_job.train.batches import Batch
from cpmbee_job.train.engine.interface import EngineState, EvalResult, ParameterStatistics, StepResult
from cpmbee_job.train.loop import Outcome, train
from cpmbee_job.train.loop_state import LoopState
from cpmbee_job.train.output.progress import Progress

INTERRUPTED = -1.0
"""Loss of an evaluation that a stop interrupts."""


@dataclass
class CountingEngine:
    eval_losses: Iterator[float]
    stop_at: int = 0
    bad_step: int = 0

    def step(
        self, step: int, micro_batches: Sequence[ModelInputs], learning_rate: float, wants_stop: Callable[[], bool]
    ) -> StepResult:
        if step == self.bad_step:
            raise ModelError("the loss is nan")
        return StepResult(1.0, 1.0, 1.0, 10, 2, stop=wants_stop() or step == self.stop_at)

    def evaluate(self, micro_batches: Iterable[ModelInputs], wants_stop: Callable[[], bool]) -> EvalResult | None:
        loss = next(self.eval_losses)
        return None if loss == INTERRUPTED else EvalResult(loss, 5)

    def state(self) -> EngineState:
        return EngineState({}, {})

    def load_state(self, state: EngineState) -> None: ...

    def trained_weights(self) -> dict[str, Tensor]:
        return {}

    def statistics(self) -> list[ParameterStatistics]:
        return [ParameterStatistics("lora_A", 0.0, 1.0, 2.0)]


@dataclass
class Recorder(Progress):
    """Saver and progress in one: records events in order."""

    events: list[str] = field(default_factory=list)

    def record_rows(self, batch: Batch) -> None: ...

    def save_checkpoint(self, state: LoopState) -> None:
        self.events.append(f"checkpoint {state.step}")

    def save_best(self, state: LoopState) -> None:
        self.events.append(f"best {state.best_step}")

    def step(self, step: int, epoch: int, learning_rate: float, result: StepResult) -> None: ...

    def evaluation(self, step: int, result: EvalResult, is_best: bool) -> None:
        self.events.append(f"eval {step}")

    def log(self, message: str) -> None:
        self.events.append(message)


def run(
    total: int, eval_losses: Sequence[float] | None, state: LoopState | None = None, **fields: int
) -> tuple[Outcome, LoopState, list[str]]:
    stop_at, bad_step = fields.pop("stop_at", 0), fields.pop("bad_step", 0)
    state, recorder = state or LoopState(), Recorder()
    outcome = train(
        TrainSpec.model_validate({"eval_interval": 2, "checkpoint_interval": 100, **fields}),
        state,
        engine=CountingEngine(iter(eval_losses or ()), stop_at, bad_step),
        batches=[Batch(step, 1, [step], [step], []) for step in range(state.step + 1, total + 1)],
        eval_batches=None if eval_losses is None else [],
        total_steps=total,
        saver=recorder,
        progress=recorder,
        wants_stop=lambda: False,
    )
    return outcome, state, recorder.events


def test_evaluations_at_intervals_and_at_the_end() -> None:
    outcome, _, events = run(5, [3.0, 2.0, 2.5])
    assert outcome == "finished"
    assert events == ["best 2", "eval 2", "best 4", "eval 4", "eval 5", "checkpoint 5"]


def test_early_stop_without_a_better_evaluation() -> None:
    outcome, state, events = run(100, [2.0, 2.0, 3.0], early_stop_patience=2)
    assert (outcome, state.step, state.best_step) == ("early stop", 6, 2)
    assert events[-2:] == ["checkpoint 6", "early stop: no better evaluation in the last 2"]


def test_the_count_for_early_stopping_survives_a_restart() -> None:
    state = LoopState(step=4, best_step=2, best_loss=2.0, evaluations_without_gain=1, evaluated_step=4)
    outcome, state, _ = run(100, [2.5], state, early_stop_patience=2)
    assert (outcome, state.step) == ("early stop", 6)


def test_a_resumed_run_that_stopped_early_trains_no_further_step() -> None:
    state = LoopState(step=6, best_step=2, best_loss=2.0, evaluations_without_gain=2, evaluated_step=6)
    outcome, state, events = run(100, [], state, early_stop_patience=2)
    assert (outcome, state.step, events) == ("early stop", 6, [])


def test_a_stop_saves_a_checkpoint() -> None:
    outcome, state, events = run(100, None, stop_at=7)
    assert (outcome, state.step, events) == ("stopped", 7, ["checkpoint 7"])


def test_a_stop_at_the_last_step_finishes_the_run() -> None:
    assert run(7, None, stop_at=7)[0] == "finished"


def test_a_stop_defers_the_evaluation_to_the_next_attempt() -> None:
    outcome, state, events = run(100, [], stop_at=4, eval_interval=4)
    assert (outcome, events) == ("stopped", ["checkpoint 4"])
    outcome, state, events = run(6, [2.0, 3.0], state, eval_interval=4)
    assert (outcome, events) == ("finished", ["best 4", "eval 4", "eval 6", "checkpoint 6"])


def test_a_stop_during_an_evaluation_saves_a_checkpoint() -> None:
    outcome, state, events = run(4, [INTERRUPTED])
    assert (outcome, state.evaluated_step, events) == ("stopped", 0, ["checkpoint 2"])
    assert run(4, [2.0, 1.0], state)[2] == ["best 2", "eval 2", "best 4", "eval 4", "checkpoint 4"]


def test_a_stop_at_the_last_step_defers_the_last_evaluation() -> None:
    outcome, state, _ = run(4, [2.0], stop_at=4)
    assert (outcome, state.step) == ("stopped", 4)
    outcome, state, events = run(4, [1.0], state)
    assert (outcome, events) == ("finished", ["best 4", "eval 4"])


def test_checkpoints_at_intervals() -> None:
    assert run(5, None, checkpoint_interval=2)[2] == ["checkpoint 2", "checkpoint 4", "checkpoint 5"]


def test_inspection_logs_statistics_of_every_parameter() -> None:
    tables = [event for event in run(4, None, inspect_iters=2)[2] if "lora_A" in event]
    assert len(tables) == 2


def test_a_failed_step_is_named_with_its_packed_rows() -> None:
    with pytest.raises(ModelError, match=r"step 3 \(packed rows 3\): the loss is nan"):
        run(5, None, bad_step=3)


def test_a_state_equals_its_record() -> None:
    for state in (LoopState(), LoopState(4, 2, 1.5, 1, 4)):
        assert LoopState.from_record(state.record()) == state
