"""Measure one layer's attention on a GPU: groups with biases in memory, as the product does it, and FlexAttention over
the flat sequence, which computes the bias of each pair in its kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.measure import timed
from benchmarks.roofline import wait_for
from benchmarks.step import Case
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.net.attention import GroupedAttention
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.model.net.layers import BucketPositionBias

Result = TypeVar("Result")
Form = Literal["groups", "flex"]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Map queries, keys and values, each (N, H, h), to (N, H, h)."""


@dataclass(frozen=True)
class MeasuredAttention:
    form: Form
    layer: float
    """Seconds of the forward and backward pass of a layer."""
    batch: float
    """Seconds for the part that all layers of a batch share: the biases, or the map of non-empty blocks."""
    first: float
    """Seconds of the first call, including compilation."""
    peak_gib: float
    """Peak memory in bytes above queries, keys and values."""
    difference: float
    """Relative difference of outputs and gradients from those of the groups, in norm."""


def both_forms(
    case: Case, config: ModelConfig, dtype: torch.dtype, device: torch.device, repeats: int
) -> list[MeasuredAttention]:
    """Measure the groups, then FlexAttention. On a CPU, FlexAttention is not compiled and has no backward pass: a
    rehearsal."""
    inputs = ModelInputs.from_numpy(**vars(case.ours)).to(device)
    torch.manual_seed(0)
    bias = BucketPositionBias(config).to(device, dtype).requires_grad_(requires_grad=False)
    bias.relative_attention_bias.normal_()
    shape = (3, len(inputs.ids), config.num_heads, config.dim_head)
    qkv = torch.randn(shape, dtype=dtype, device=device, requires_grad=device.type == "cuda")
    results: list[MeasuredAttention] = []
    expected: list[Tensor] = []
    for form, build in _FORMS.items():
        before = _reset_peak(device)
        attend = build(bias, inputs)
        each = partial(_waited, device, partial(_there_and_back, attend, qkv))
        once = partial(_waited, device, partial(build, bias, inputs))
        first = timed(each)
        expected = expected or each()
        differences = [(x - y).float().norm() / y.float().norm() for x, y in zip(each(), expected, strict=True)]
        layer, batch = (min(timed(call) for _ in range(repeats)) for call in (each, once))
        peak = _peak(device) - before
        results.append(MeasuredAttention(form, layer, batch, first, peak, max(float(d) for d in differences)))
    return results


def _groups(bias: BucketPositionBias, inputs: ModelInputs) -> Attention:
    attend = GroupedAttention(bias, inputs, dropout_p=0.0)
    return lambda q, k, v: attend(0, q, k, v)


def _flex(bias: BucketPositionBias, inputs: ModelInputs) -> Attention:
    """Apply the rules of `attention.visible` and `attention.pair_bias`."""
    device, num_tokens = inputs.ids.device, len(inputs.ids)
    lengths = torch.tensor(inputs.lengths, device=device)
    example_N = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    longest = max(inputs.lengths)
    distances = torch.arange(-longest, longest + 1, device=device)
    # Look up the bias row of a distance, because a logarithm for each pair would cost more.
    row_of_distance = bias._bucket(distances)
    table_RH = bias.relative_attention_bias.detach()
    positions, context, samples = inputs.positions, inputs.context, inputs.samples
    entry_N = inputs.rel_offset + inputs.segments * inputs.num_segments

    def sees(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        causal = ~context[q] & (positions[k] <= positions[q])
        sample = (samples[q] == 0) | (samples[q] == samples[k])
        return (example_N[q] == example_N[k]) & (context[k] | causal) & sample

    def biased(score: Tensor, _b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        together = (example_N[q] == example_N[k]) & (samples[q] == samples[k])
        bucket = inputs.segment_rel[torch.where(together, entry_N[q] + inputs.segments[k], 0)]
        bucket = torch.where(together, bucket, 1)
        near = row_of_distance[positions[k] - positions[q] + longest]
        return score + table_RH[torch.where(bucket == 0, near, bucket - 1 + bias.num_buckets), h]

    blocks = create_block_mask(sees, None, None, num_tokens, num_tokens, device=device.type)
    attend: Any = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out: Tensor = attend(q, k, v, score_mod=biased, block_mask=blocks)
        return out[0].transpose(0, 1)

    return forward


_FORMS: dict[Form, Callable[[BucketPositionBias, ModelInputs], Attention]] = {"groups": _groups, "flex": _flex}


def _there_and_back(attend: Attention, qkv: Tensor) -> list[Tensor]:
    """Return the output, and the gradients of queries, keys and values if they require any."""
    out = attend(*qkv)
    gradients = torch.autograd.grad(out, qkv, torch.ones_like(out)) if qkv.requires_grad else ()
    return [out.detach(), *gradients]


def _waited(device: torch.device, call: Callable[[], Result]) -> Result:
    result = call()
    wait_for(device)
    return result


def _reset_peak(device: torch.device) -> float:
    if device.type == "cpu":
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 2**30


def _peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
