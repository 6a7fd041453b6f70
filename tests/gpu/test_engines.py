"""Both layouts on one GPU, against the same engine on this machine's CPU, which is tested against the dense oracle."""

import copy
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from cpmbee_job.eval.files import fetch_model
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.inputs import ModelInputs
from cpmbee_job.model.memory import footprint
from cpmbee_job.run import Run
from cpmbee_job.train.build import build_engine
from cpmbee_job.train.plan import ITEMSIZES, Plan
from cpmbee_job.train.torch_engine import TorchEngine
from cpmbee_job.train.world import World
from tests.integration.jobs import cli, losses, metrics, start, wait_for
from tests.oracle import flatten_rows, random_rows

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
LAYOUTS = ["replicated", "sharded"]
STEPS = 6


@pytest.fixture(scope="module")
def inputs(run: Run) -> ModelInputs:
    config = ModelConfig.from_file(fetch_model(run.spec.model).config)
    return ModelInputs.from_numpy(**flatten_rows(random_rows(np.random.default_rng(0), config.vocab_size, 3, 6)))


def engine(run: Run, device: torch.device, layout: str = "replicated", precision: str = "fp32", again: int = 0):
    """From the safetensors of the job's model, as a worker builds it."""
    plan = Plan("bmtrain", layout, precision, again)
    return build_engine(run, fetch_model(run.spec.model), World(0, 0, 1, device), plan)


def steps(engine: TorchEngine, inputs: ModelInputs, first: int = 1, last: int = STEPS) -> list[float]:
    on_its_way = inputs.pin_memory() if engine.device.type == "cuda" else inputs
    return [engine.step(n, [on_its_way], 1e-3, lambda: False).loss for n in range(first, last + 1)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_in_fp32_are_the_cpu_s(run: Run, inputs: ModelInputs, device: torch.device, layout: str) -> None:
    expected = steps(engine(run, CPU), inputs)
    there = engine(run, device, layout)
    assert steps(there, inputs) == pytest.approx(expected, rel=1e-4)
    evaluated = there.evaluate([inputs], lambda: False)
    assert evaluated is not None
    assert evaluated.loss < expected[-1]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision_learns_the_same(run, inputs, device, layout: str, precision: str) -> None:
    expected = steps(engine(run, CPU), inputs)
    assert steps(engine(run, device, layout, precision), inputs) == pytest.approx(expected, rel=0.03)


def test_layouts_compute_the_same(run: Run, inputs: ModelInputs, device: torch.device) -> None:
    whole, shares = (engine(run, device, layout, "fp16") for layout in LAYOUTS)
    assert steps(whole, inputs) == pytest.approx(steps(shares, inputs), rel=1e-3)


def test_blocks_know_no_gradient_and_hold_no_more_than_a_share_between_steps(run, inputs, device) -> None:
    whole, shares = (engine(run, device, layout) for layout in LAYOUTS)
    steps(shares, inputs, 1, 2)
    shares.evaluate([inputs], lambda: False)
    names = [[(name, p.requires_grad) for name, p in one.model.named_parameters()] for one in (whole, shares)]
    assert names[0] == names[1]
    assert all(p.grad is None for p in shares.model.parameters() if not p.requires_grad)
    for block in shares.model.encoder.layers:
        assert not block._ready
        assert [(held.requires_grad, held.grad) for held in block._storage_params.values()] == [(False, None)]


def test_computing_again_learns_the_same(run: Run, inputs: ModelInputs, device: torch.device) -> None:
    kept, again = (engine(run, device, precision="fp16", again=number) for number in (0, 2))
    assert steps(kept, inputs) == pytest.approx(steps(again, inputs), rel=1e-3)


def test_a_state_goes_from_engine_to_engine_bit_by_bit(run: Run, inputs: ModelInputs, device: torch.device) -> None:
    places = [(CPU, "replicated"), (device, "sharded"), (device, "replicated"), (CPU, "replicated")]
    state, undisturbed = None, steps(engine(run, CPU), inputs, 1, 8)
    for turn, (where, layout) in enumerate(places):
        one = engine(run, where, layout)
        if state is not None:
            one.load_state(state)
            again = one.state()
            assert again.values == state.values
            assert again.tensors.keys() == state.tensors.keys()
            assert all(torch.equal(again.tensors[name], state.tensors[name]) for name in state.tensors)
        found = steps(one, inputs, 2 * turn + 1, 2 * turn + 2)
        assert found == pytest.approx(undisturbed[2 * turn : 2 * turn + 2], rel=1e-4)
        state = copy.deepcopy(one.state())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_overflow_in_fp16_is_done_again_and_counts_once(run, inputs, device, layout: str) -> None:
    one = engine(run, device, layout, "fp16")
    one.loss_scale.value = float(2**40)
    result = one.step(1, [inputs], 1e-3, lambda: False)
    assert result.loss_scale < 2**30
    assert one.loss_scale.clean_steps == 1
    assert {int(value) for name, value in one.state().tensors.items() if name.startswith("step/")} == {1}


def test_memory_is_about_what_arithmetic_says(run: Run, inputs: ModelInputs, device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("the allocator of a GPU counts")
    config = ModelConfig.from_file(fetch_model(run.spec.model).config)
    one = engine(run, device, precision="fp16")
    torch.cuda.reset_peak_memory_stats(device)
    steps(one, inputs, 1, 2)
    lora = (run.spec.lora.r, run.spec.lora.modules)
    longest = max(inputs.lengths)
    rows = -(-len(inputs.ids) // longest)
    said = footprint(config, rows=rows, max_length=longest, itemsize=ITEMSIZES["fp16"], lora=lora).total
    assert torch.cuda.max_memory_allocated(device) < 1.5 * said


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_job_that_is_told_to_stop_goes_on_and_ends_well(job: Path, device: torch.device, layout: str) -> None:
    """The whole way, as `local` runs it. A CPU has no layout to choose."""
    options = ["--set", f"train.layout={layout}"] if device.type == "cuda" else []
    options += ["--run-id", f"stop-{layout}", "--processes", "1", "--set", "train.early_stop_patience=0"]
    folder = job.parent / "runs" / "weather" / f"stop-{layout}"
    running = start("local", job, *options)
    wait_for(folder / "checkpoints" / "LATEST", seconds=120)
    os.kill(running.pid, signal.SIGTERM)
    _, said = running.communicate(timeout=120)
    assert cli("local", job, *options).code == 0, said
    found = losses(folder)
    assert found[-1] < found[0]
    assert len(metrics(folder, "eval")) >= 3
