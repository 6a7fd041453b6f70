"""The dense formulation of CPM-Bee, directly from the definition: one (length x length x heads) bias for each packed
row, and logits for every position. It is the baseline of `step` and the oracle of the tests.

A batch is a dict of arrays: inputs, inputs_sub, context, sample_ids, num_segments, segment_ids, segment_rel_offset,
spans, target: (batch, seqlen); length: (batch,); segment_rel: (batch, entries); ext_ids, ext_sub.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cpmbee_job.model.config import ModelConfig

IGNORED = -100


def dense_logits(
    weights: Mapping[str, Tensor], config: ModelConfig, batch: dict[str, np.ndarray], *, checkpointed: bool = False
) -> Tensor:
    """Return logits (batch, seqlen, vocabulary + extra) of every position, including padding.

    `checkpointed` recomputes activations inside layers in the backward pass, as the original does: less memory, more
    time.
    """
    device = weights["input_embedding.weight"].device
    row = {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in batch.items()}
    bias, mask = _bias_and_mask(weights, config, row)
    hidden = _embed(weights, config, row["inputs"], row["inputs_sub"])
    for layer in range(config.num_layers):
        inputs = (weights, config, layer, hidden, bias, mask)
        hidden = checkpoint(_layer, *inputs, use_reentrant=False) if checkpointed else _layer(*inputs)
    hidden = _norm(weights["encoder.output_layernorm.weight"], hidden, config)
    table = weights["input_embedding.weight"]
    extra = _embed(weights, config, row["ext_ids"], row["ext_sub"])
    return torch.cat([hidden / math.sqrt(config.dim_model) @ table.T, hidden @ extra.T], dim=-1)


def dense_losses(
    weights: Mapping[str, Tensor], config: ModelConfig, batch: dict[str, np.ndarray], *, checkpointed: bool = False
) -> Tensor:
    """Return the loss of each target, in the order of the packed rows."""
    logits = dense_logits(weights, config, batch, checkpointed=checkpointed).flatten(0, 1)
    targets = torch.from_numpy(batch["target"].flatten().astype(np.int64)).to(logits.device)
    return F.cross_entropy(logits[targets != IGNORED], targets[targets != IGNORED], reduction="none")


def _layer(
    weights: Mapping[str, Tensor], config: ModelConfig, layer: int, hidden: Tensor, bias: Tensor, mask: Tensor
) -> Tensor:
    prefix = f"encoder.layers.{layer}."
    has_attention, has_ffn = config.blocks[layer]
    if has_attention:
        hidden = (hidden + _attend(weights, config, prefix + "self_att.", hidden, bias, mask)) / 1.05
    if has_ffn:
        x = _norm(weights[prefix + "ffn.layernorm_before_ffn.weight"], hidden, config)
        gate = F.gelu(_linear(weights, prefix + "ffn.ffn.w_in.w_0", x))
        x = gate * _linear(weights, prefix + "ffn.ffn.w_in.w_1", x)
        hidden = (hidden + _linear(weights, prefix + "ffn.ffn.w_out", x)) / 1.05
    return hidden


def _bias_and_mask(weights: Mapping[str, Tensor], config: ModelConfig, row: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    seqlen = row["inputs"].shape[1]
    sample, span, context = row["sample_ids"], row["spans"], row["context"].bool()
    same_span = span[:, :, None] == span[:, None, :]
    together = same_span & (sample[:, :, None] == sample[:, None, :])
    entry = row["segment_ids"] * row["num_segments"] + row["segment_rel_offset"]
    entry = torch.where(together, entry[:, :, None] + row["segment_ids"][:, None, :], 0)
    bucket = row["segment_rel"].gather(1, entry.flatten(1).long()).view_as(entry)
    bucket = torch.where(together, bucket, 1)
    place = torch.arange(seqlen, device=span.device)
    distance = place[None, :] - place[:, None]
    index = torch.where(bucket == 0, _distance_bucket(config, distance), bucket - 1 + config.position_bias_num_buckets)
    bias = F.embedding(index, weights["position_bias.relative_attention_bias"]).permute(0, 3, 1, 2).contiguous()
    inside = place < row["length"][:, None]
    sees = context[:, None, :] | (~context[:, :, None] & (distance <= 0))
    sees = sees & ((sample[:, :, None] == 0) | (sample[:, :, None] == sample[:, None, :]))
    return bias, sees & same_span & inside[:, :, None] & inside[:, None, :]


def _distance_bucket(config: ModelConfig, distance: Tensor) -> Tensor:
    half = config.position_bias_num_buckets // 2
    exact = half // 2
    size = distance.abs()
    steps = torch.log(size.clamp(min=1).float() / exact) / math.log(config.position_bias_max_distance / exact)
    far = torch.clamp(exact + (steps * (half - exact)).int(), max=half - 1)
    return torch.where(size < exact, size, far) + half * (distance > 0)


def _attend(
    weights: Mapping[str, Tensor], config: ModelConfig, prefix: str, hidden: Tensor, bias: Tensor, mask: Tensor
) -> Tensor:
    x = _norm(weights[prefix + "layernorm_before_attention.weight"], hidden, config)
    heads = (*x.shape[:2], config.num_heads, config.dim_head)
    q, k, v = (_linear(weights, f"{prefix}self_attention.project_{n}", x).view(heads).transpose(1, 2) for n in "qkv")
    scores = q @ k.transpose(-1, -2) / math.sqrt(config.dim_head) + bias
    scores = scores.masked_fill(~mask[:, None], float("-inf"))
    probability = torch.softmax(scores, dim=-1).masked_fill(~mask[:, None], 0.0)
    out = (probability @ v).transpose(1, 2).flatten(2)
    return _linear(weights, prefix + "self_attention.attention_out", out)


def _embed(weights: Mapping[str, Tensor], config: ModelConfig, ids: Tensor, subs: Tensor) -> Tensor:
    x = weights["input_embedding.weight"][ids.long()] / math.sqrt(config.dim_model)
    frequency = 1.0 / 10000 ** (torch.arange(0, config.dim_model, 2, device=x.device) / config.dim_model)
    angle = (subs.float() * config.distance_scale)[..., None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * angle.cos().to(x.dtype) + torch.cat([-second, first], dim=-1) * angle.sin().to(x.dtype)


def _norm(weight: Tensor, x: Tensor, config: ModelConfig) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + config.eps)).to(x.dtype) * weight


def _linear(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Apply a linear layer, with its LoRA pair if there is one (alpha / r = 2)."""
    y = x @ weights[f"{name}.weight"].T / math.sqrt(x.shape[-1])
    if f"{name}.lora.lora_A" in weights:
        a, b = (weights[f"{name}.lora.lora_{which}"].to(x.dtype) for which in "AB")
        y = y + 2 * x @ a.T @ b.T
    return y
