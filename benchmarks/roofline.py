"""Profile a step on a GPU, and time its matrix products alone, which are its lower bound."""

import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import timed
from cpmbee_job.model.config import ModelConfig

KERNELS = {
    "attention": ("fmha", "flash", "attention", "cudnn::fusion"),
    "products": ("gemm", "cutlass", "nvjet", "xmma", "splitk", "cublas"),
    "norms": ("norm",),
    "gathers": ("index", "gather", "scatter", "catarray", "_copy", "memcpy", "memset"),
}
"""Kinds of kernels, by parts of their names; the first match counts. All others are elementwise."""
_LAYERS = 4
"""Number of layers whose weights alternate, so that none stays in the GPU's cache."""


def shares(step: Callable[[], object], device: torch.device) -> dict[str, float] | None:
    """Return the share of each kind of kernel in the wall time of one step, and of the time between kernels. None on
    a CPU."""
    if device.type == "cpu":
        return None
    wall = timed(step)  # a step synchronizes at its end
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize(device)
    seconds = dict.fromkeys([*KERNELS, "elementwise"], 0.0)
    for event in profiler.events() or []:
        if event.device_type.name == "CUDA" and not event.is_user_annotation:
            seconds[kind_of(event.name)] += event.time_range.elapsed_us() / 1e6
    seconds["idle"] = max(0.0, wall - sum(seconds.values()))
    return {kind: spent / wall for kind, spent in seconds.items()}


def products_alone(
    config: ModelConfig, tokens: int, dtype: torch.dtype, device: torch.device, repeats: int = 8
) -> float:
    """Return FLOP/s of the products of a layer with its frozen weights, forward and backward, one after the other."""
    heads = config.num_heads * config.dim_head
    shapes = [*3 * [(config.dim_model, heads)], (heads, config.dim_model)]
    shapes += [*2 * [(config.dim_model, config.dim_ff)], (config.dim_ff, config.dim_model)]
    weights = [[torch.randn(o, i, dtype=dtype, device=device) for i, o in shapes] for _ in range(_LAYERS)]
    inputs = {width: torch.randn(tokens, width, dtype=dtype, device=device) for shape in shapes for width in shape}

    def layer(number: int) -> None:
        for weight in weights[number % _LAYERS]:
            inputs[weight.shape[1]] @ weight.T
        for weight in weights[number % _LAYERS]:
            inputs[weight.shape[0]] @ weight

    layer(0)
    wait_for(device)
    start = time.perf_counter()
    for number in range(repeats):
        layer(number)
    wait_for(device)
    flops = 4.0 * tokens * sum(i * o for i, o in shapes)
    return repeats * flops / (time.perf_counter() - start)


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, parts in KERNELS.items() if any(part in name for part in parts)), "elementwise")


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
