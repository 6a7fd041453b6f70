"""Learning rates equal BMTrain's formulas; the loss scale follows a table."""

import math
from dataclasses import asdict

import pytest

from cpmbee_job.errors import ModelError
from cpmbee_job.spec import TrainSpec
from cpmbee_job.train.engine.optim import LossScale, learning_rate


def rates(steps: list[int], **fields: object) -> list[float]:
    spec = TrainSpec.model_validate({"lr": 0.1, **fields})
    return [learning_rate(spec, step) for step in steps]


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("noam", [0.1 / 2 * 1 / 4, 0.1 / 2 * 3 / 4, 0.1 / 2, 0.1 / 3]),
        ("linear", [0.025, 0.075, 0.1, 0.1 * 5 / 10]),
        ("cosine", [0.025, 0.075, 0.1, 0.1 * 0.5 * (1 + math.cos(math.pi * 5 / 10))]),
        ("exponential", [0.025, 0.075, 0.1, 0.1 * 0.95**5]),
        ("constant", [0.025, 0.075, 0.1, 0.1]),
    ],
)
def test_warm_up_then_decay(style: str, expected: list[float]) -> None:
    assert rates([1, 3, 4, 9], lr_decay_style=style, warmup_iters=4, train_iters=14) == pytest.approx(expected)


def test_start_step_shifts_the_schedule() -> None:
    assert rates([1], start_step=8, warmup_iters=1) == rates([9], warmup_iters=1)


def test_lr_decay_iters_overrides_train_iters() -> None:
    fields = {"lr_decay_style": "linear", "warmup_iters": 0}
    assert rates([3], lr_decay_iters=10, train_iters=99, **fields) == rates([3], train_iters=10, **fields)


def test_linear_and_cosine_are_zero_after_the_horizon() -> None:
    for style in ("linear", "cosine"):
        assert rates([50], lr_decay_style=style, train_iters=10) == [0.0]


def test_no_warm_up() -> None:
    assert rates([1], warmup_iters=0) == [0.1]


@pytest.mark.parametrize(
    ("events", "values", "clean_steps"),
    [
        ("uuuuuouuuoo", [8, 8, 16, 16, 16, 8, 8, 8, 16, 8, 4], [1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0]),
        ("ouu", [4, 4, 4], [0, 1, 2]),  # overflow in the first step
        ("uuouuuu", [8, 8, 4, 4, 4, 8, 8], [1, 2, 0, 1, 2, 0, 1]),  # an overflow resets the count
        ("oooouuu", [4, 2, 1, None, 1, 1, 2], [0, 0, 0, 0, 1, 2, 0]),  # at scale 1, infinite gradients are an error
    ],
)
def test_the_loss_scale_follows_its_table(events: str, values: list[float | None], clean_steps: list[int]) -> None:
    scale = LossScale(8.0, factor=2.0, steps=3)
    for event, value, clean in zip(events, values, clean_steps, strict=True):
        if value is None:
            with pytest.raises(ModelError, match="loss scale 1"):
                scale.overflowed()
            continue
        scale.updated() if event == "u" else scale.overflowed()
        assert (scale.value, scale.clean_steps) == (value, clean)
        scale = LossScale(**asdict(scale))  # as in a checkpoint


def test_the_loss_scale_is_at_least_1() -> None:
    scale = LossScale(2.0, factor=3.0, steps=3)
    scale.overflowed()
    assert scale.value == 1.0


def test_an_overflow_at_scale_1_is_an_error() -> None:
    scale = LossScale(1.0, factor=2.0, steps=3)
    with pytest.raises(ModelError, match="loss scale 1"):
        scale.overflowed()
