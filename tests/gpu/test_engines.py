"""Both layouts on one GPU compute the golden losses, and states move between them."""

import copy
import gc
import json
import os
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import LENGTH, LORA, TEN_B, our_step, random_model
from benchmarks.step import Case, ccpm, one_long
from cpmbee_job.model.memory import footprint
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.model.plan import ITEMSIZES
from cpmbee_job.run.run import Run
from tests.gpu.golden import CPU, LEARNING_RATE, PLACE, engine, inputs_of, steps
from tests.integration.jobs import cli, losses, metrics, start, wait_for

pytestmark = pytest.mark.gpu
GOLDEN = json.loads(PLACE.read_text(encoding="utf-8"))
LAYOUTS = ["replicated", "sharded"]
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 1e-2}
"""Relative tolerances of a loss. On a CPU fp16 differs by at most 1e-4, bf16 by 7e-4."""


@pytest.fixture(scope="module")
def inputs(run: Run) -> ModelInputs:
    return inputs_of(run)


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_equal_the_golden_losses(run, inputs, device, layout: str, precision: str) -> None:
    there = engine(run, device, layout, precision)
    assert steps(there, inputs) == pytest.approx(GOLDEN["steps"], rel=TOLERANCES[precision])
    evaluated = there.evaluate([inputs], lambda: False)
    assert evaluated is not None
    assert evaluated.loss == pytest.approx(GOLDEN["evaluation"], rel=TOLERANCES[precision])


def test_layouts_compute_the_same_losses(run: Run, inputs: ModelInputs, device: torch.device) -> None:
    whole, shares = (engine(run, device, layout, "fp16") for layout in LAYOUTS)
    assert steps(whole, inputs) == pytest.approx(steps(shares, inputs), rel=1e-3)


def test_blocks_have_no_gradients_and_only_their_shards_between_steps(run, inputs, device) -> None:
    whole, shares = (engine(run, device, layout) for layout in LAYOUTS)
    steps(shares, inputs, 1, 2)
    shares.evaluate([inputs], lambda: False)
    names = [[(name, p.requires_grad) for name, p in one.model.named_parameters()] for one in (whole, shares)]
    assert names[0] == names[1]
    assert all(p.grad is None for p in shares.model.parameters() if not p.requires_grad)
    for block in shares.model.encoder.layers:
        assert not block._ready
        assert [(held.requires_grad, held.grad) for held in block._storage_params.values()] == [(False, None)]


def test_recomputing_layers_learns_the_same(run: Run, inputs: ModelInputs, device: torch.device) -> None:
    kept, recomputed = (engine(run, device, precision="fp16", recompute_layers=number) for number in (0, 2))
    assert steps(kept, inputs) == pytest.approx(steps(recomputed, inputs), rel=1e-3)


def test_a_state_moves_between_engines_with_identical_bits(run: Run, inputs: ModelInputs, device: torch.device) -> None:
    places = [(CPU, "replicated"), (device, "sharded"), (device, "replicated"), (CPU, "replicated")]
    state = None
    for turn, (where, layout) in enumerate(places):
        one = engine(run, where, layout)
        if state is not None:
            one.load_state(state)
            again = one.state()
            assert again.values == state.values
            assert again.tensors.keys() == state.tensors.keys()
            assert all(torch.equal(again.tensors[name], state.tensors[name]) for name in state.tensors)
        found = steps(one, inputs, 2 * turn + 1, 2 * turn + 2)
        assert found == pytest.approx(GOLDEN["steps"][2 * turn : 2 * turn + 2], rel=TOLERANCES["fp32"])
        state = copy.deepcopy(one.state())


def test_a_step_waits_for_the_gpu_once(run: Run, inputs: ModelInputs, device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("torch reports synchronization only on a GPU")
    one = engine(run, device, precision="fp16")
    there = inputs.prefetched(device)
    steps(one, inputs, 1, 1)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            one.step(2, [there], LEARNING_RATE, lambda: False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ["synchronizing CUDA operation" in str(wait.message) for wait in waits] == [True]


def test_bmtrain_has_no_side_effects_on_the_process(run: Run, device: torch.device) -> None:
    cpus = os.sched_getaffinity(0)
    engine(run, device, "sharded")
    assert torch.backends.cudnn.enabled
    assert os.sched_getaffinity(0) == cpus == os.sched_getaffinity(os.getppid())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_that_overflows_in_fp16_is_repeated_and_counted_once(run, inputs, device, layout: str) -> None:
    one = engine(run, device, layout, "fp16")
    one.loss_scale.value = float(2**40)
    result = one.step(1, [inputs], 1e-3, lambda: False)
    assert result.loss_scale < 2**30
    assert one.loss_scale.clean_steps == 1
    assert {int(value) for name, value in one.state().tensors.items() if name.startswith("step/")} == {1}


@pytest.mark.parametrize("case", [ccpm, one_long], ids=["short examples", "one long"])
def test_memory_is_about_the_estimate(device: torch.device, case: Callable[[int], Case]) -> None:
    """Has the width of the 10b: with a small model, the workspaces of libraries would dominate."""
    if device.type != "cuda":
        pytest.skip("only the allocator of a GPU counts bytes")
    config = replace(TEN_B, num_layers=4)
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step = our_step(random_model(config, torch.float16, device), case(1), device, recompute_layers=0)
    step()
    step()
    lora = (LORA.r, LORA.modules)
    estimate = footprint(config, rows=1, max_length=LENGTH, itemsize=ITEMSIZES["fp16"], lora=lora).total
    assert torch.cuda.max_memory_allocated(device) - before == pytest.approx(estimate, rel=0.25)


def local(job: Path, name: str, layout: str, device: torch.device) -> list[object]:
    """Return the arguments that run the job in a layout; a CPU has only one.

    A GPU gets more epochs: its steps are short, and the run must be stopped between them.
    """
    options = ["local", job, "--run-id", name, "--processes", "1", "--set", "train.early_stop_patience=0"]
    fast = ["--set", f"train.layout={layout}", "--set", "train.epochs=20"]
    return [*options, *fast] if device.type == "cuda" else options


@pytest.fixture(scope="module")
def uninterrupted(job: Path, device: torch.device) -> list[float]:
    done = cli(*local(job, "uninterrupted", "replicated", device))
    assert done.code == 0, done.err
    return losses(job.parent / "runs" / "weather" / "uninterrupted")


@pytest.mark.parametrize(("first", "then"), [LAYOUTS, LAYOUTS[::-1]])
def test_a_stopped_job_resumes_in_the_other_layout_and_succeeds(
    job: Path, device: torch.device, uninterrupted: list[float], first: str, then: str
) -> None:
    name = f"first-{first}"
    folder = job.parent / "runs" / "weather" / name
    running = start(*local(job, name, first, device))
    wait_for(folder / "checkpoints" / "LATEST", seconds=120)
    os.kill(running.pid, signal.SIGTERM)
    _, said = running.communicate(timeout=120)
    assert cli(*local(job, name, then, device)).code == 0, said
    assert {line["attempt"] for line in metrics(folder)} == {1, 2}
    # The order of sums differs, and training amplifies the difference.
    assert losses(folder) == pytest.approx(uninterrupted, rel=1e-2)
    assert len(metrics(folder, "eval")) >= 3
