"""Mixed precision: fp32 master weights, overflows, recomputed layers, and states that fit any precision."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from cpmbee_job.errors import ModelError
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.lora import insert_lora
from cpmbee_job.model.net.cpmbee import CpmBee, init_weights
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.spec import TrainSpec
from cpmbee_job.train.engine.torch_engine import TorchEngine
from tests.oracle import flatten_rows, random_rows

CONFIG = ModelConfig(vocab_size=50, dim_model=32, num_heads=4, dim_head=8, dim_ff=48, num_layers=2, half=False)
CPU = torch.device("cpu")
INPUTS = ModelInputs.from_numpy(**flatten_rows(random_rows(np.random.default_rng(0), 50, 2, 3)))


def engine(dtype: torch.dtype, *, lora: bool = True, change: Callable[[CpmBee], None] | None = None, **train: object):
    model = CpmBee(CONFIG)
    init_weights(model, seed=0)
    model = model.to(dtype)
    if lora:
        insert_lora(model, 8, 16, ["project_q", "project_v"], seed=1)
    if change is not None:
        change(model)
    return TorchEngine(model, TrainSpec.model_validate({"loss_scale": 1024.0, **train}), CPU)


def steps(engine: TorchEngine, first: int, last: int, learning_rate: float = 1e-3) -> list[float]:
    return [engine.step(n, [INPUTS], learning_rate, lambda: False).loss for n in range(first, last + 1)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lora", [True, False])
def test_small_updates_accumulate_in_half_precision(dtype: torch.dtype, lora: bool) -> None:
    trained = engine(dtype, lora=lora, weight_decay=0.0)
    before = {name: t.clone() for name, t in trained.trained_weights().items()}
    steps(trained, 1, 20, learning_rate=1e-6)
    after = trained.trained_weights()
    moved = [(after[name] - before[name]).abs().max().item() for name in after]
    assert all(t.dtype == torch.float32 for t in after.values())
    assert max(moved) == pytest.approx(20e-6, rel=0.5)


def test_full_fine_tuning_in_bf16_learns_like_fp32() -> None:
    half, full = engine(torch.bfloat16, lora=False), engine(torch.float32, lora=False)
    losses = steps(half, 1, 8), steps(full, 1, 8)
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_state_continues_with_identical_bits(dtype: torch.dtype, lora: bool) -> None:
    first = engine(dtype, lora=lora)
    steps(first, 1, 3)
    state = copy.deepcopy(first.state())
    expected = steps(first, 4, 6)
    second = engine(dtype, lora=lora)
    second.load_state(state)
    assert steps(second, 4, 6) == expected
    assert all(torch.equal(a, b) for a, b in zip(*(e.state().tensors.values() for e in (first, second)), strict=True))


def test_a_lora_state_is_the_same_in_any_precision() -> None:
    """So a checkpoint can be resumed in another precision."""
    first, second = engine(torch.bfloat16), engine(torch.float32)
    steps(first, 1, 3)
    second.load_state(first.state())
    states = first.state().tensors, second.state().tensors
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_step_that_overflows_in_fp16_is_repeated_and_counted_once() -> None:
    """The loss scale starts too large for fp16 gradients; the optimizer still steps once."""
    trained = engine(torch.float16, loss_scale=float(2**40), loss_scale_steps=2)
    first = trained.step(1, [INPUTS], 1e-3, lambda: False)
    assert 1 < first.loss_scale < 2**24
    assert trained.loss_scale.clean_steps == 1
    moments = {int(v) for k, v in trained.state().tensors.items() if k.startswith("step/")}
    assert moments == {1}
    calm = engine(torch.float16, loss_scale=first.loss_scale, loss_scale_steps=2)
    calm.step(1, [INPUTS], 1e-3, lambda: False)
    weights = trained.trained_weights(), calm.trained_weights()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_loss_that_overflows_fp16_suggests_bf16() -> None:
    def scale_up(model: CpmBee) -> None:
        model.input_embedding.weight.data.mul_(1e4)

    with pytest.raises(ModelError, match="the loss is nan") as caught:
        steps(engine(torch.float16, change=scale_up), 1, 1)
    assert "bf16" in (caught.value.hint or "")


@pytest.mark.parametrize("recompute_layers", [1, 2])
def test_recomputing_layers_changes_no_bit(recompute_layers: int) -> None:
    def recompute(model: CpmBee) -> None:
        model.encoder.recompute_layers = recompute_layers

    kept, recomputed = engine(torch.float32), engine(torch.float32, change=recompute)
    assert steps(kept, 1, 3) == steps(recomputed, 1, 3)
    weights = kept.trained_weights(), recomputed.trained_weights()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
