"""Attention masks and biases for a flat stream of examples.

Examples do not attend to each other, so memory grows with the sum of the squared lengths of examples, not with the
squared length of a packed row. Tensor names end in their shape, see `inputs`; Q queries, K keys, P tokens of all groups
including padding.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cpmbee_job.model.net.inputs import AttentionGroup, ModelInputs
from cpmbee_job.model.net.layers import BucketPositionBias


@dataclass(frozen=True)
class TokenView:
    """Token properties that define mask and bias. All (B, length) int32, `context` bool."""

    positions: Tensor
    segments: Tensor
    samples: Tensor
    context: Tensor
    num_segments: Tensor
    rel_offset: Tensor

    @classmethod
    def of(cls, tokens: "ModelInputs | TokenView", index: Any) -> "TokenView":
        """Select tokens of a batch or of another view."""
        return cls(**{field.name: getattr(tokens, field.name)[index] for field in fields(cls)})


def pair_bias(position_bias: BucketPositionBias, query: TokenView, key: TokenView, segment_rel: Tensor) -> Tensor:
    """Return the bias (B, H, Q, K) of each pair, including masked ones."""
    same_sample = query.samples[:, :, None] == key.samples[:, None, :]
    entry = (query.rel_offset + query.segments * query.num_segments)[:, :, None] + key.segments[:, None, :]
    # Tokens of different samples have no entry in the table; their bucket is 1.
    segment_bucket = torch.where(same_sample, segment_rel[torch.where(same_sample, entry, 0)], 1)
    bias: Tensor = position_bias(key.positions[:, None, :] - query.positions[:, :, None], segment_bucket)
    return bias


def visible(query: TokenView, key: TokenView) -> Tensor:
    """Return the mask (B, Q, K), True where a query attends to a key: everything attends to context, only later tokens
    attend to predicted ones, and an in-context sample attends only to itself."""
    causal = ~query.context[:, :, None] & (key.positions[:, None, :] <= query.positions[:, :, None])
    sample = (query.samples[:, :, None] == 0) | (query.samples[:, :, None] == key.samples[:, None, :])
    return (key.context[:, None, :] | causal) & sample


class GroupedAttention:
    """Attention of a batch, group by group. All layers share the biases."""

    def __init__(self, position_bias: BucketPositionBias, inputs: ModelInputs, dropout_p: float) -> None:
        self.groups = inputs.groups
        self.gather_P = torch.cat([group.gather_BL.flatten() for group in inputs.groups])
        self.restore_N = inputs.restore
        self.dropout_p = dropout_p
        self.biases = [_group_bias(position_bias, inputs, group) for group in inputs.groups]

    def __call__(self, layer: int, q_NHh: Tensor, k_NHh: Tensor, v_NHh: Tensor) -> Tensor:  # noqa: ARG002
        sizes = [group.gather_BL.numel() for group in self.groups]
        pad: Callable[[Tensor, Tensor, Tensor], Tensor] = _Pad.apply
        unpad: Callable[[Tensor, Tensor], Tensor] = _Unpad.apply
        padded = (torch.split(pad(x, self.gather_P, self.restore_N), sizes) for x in (q_NHh, k_NHh, v_NHh))
        outs = []
        for group, bias_BHLL, *of_group in zip(self.groups, self.biases, *padded, strict=True):
            q, k, v = (x.unflatten(0, group.gather_BL.shape).transpose(1, 2) for x in of_group)
            out_BHLh = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_BHLL, dropout_p=self.dropout_p)
            outs.append(out_BHLh.transpose(1, 2).flatten(0, 1))
        return unpad(torch.cat(outs), self.restore_N)


class _Pad(torch.autograd.Function):
    """Pad tokens (N, ...) to groups (P, ...). Padding has no gradient (masked as a key, dropped as a query), so the
    backward pass is a gather too, instead of torch's sum over repeated tokens."""

    @staticmethod
    def forward(ctx: Any, x_N: Tensor, gather_P: Tensor, restore_N: Tensor) -> Tensor:
        ctx.save_for_backward(restore_N)
        return x_N.index_select(0, gather_P)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (restore_N,) = ctx.saved_tensors
        return gradients[0].index_select(0, restore_N), None, None


class _Unpad(torch.autograd.Function):
    """Undo `_Pad`, (P, ...) to (N, ...). Each token occurs once, so the backward pass is a copy."""

    @staticmethod
    def forward(ctx: Any, x_P: Tensor, restore_N: Tensor) -> Tensor:
        ctx.save_for_backward(restore_N)
        ctx.num_padded = len(x_P)
        return x_P.index_select(0, restore_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (restore_N,) = ctx.saved_tensors
        (gradient_N,) = gradients
        zeros_P = gradient_N.new_zeros(ctx.num_padded, *gradient_N.shape[1:])
        return zeros_P.index_copy_(0, restore_N, gradient_N), None


def _group_bias(position_bias: BucketPositionBias, inputs: ModelInputs, group: AttentionGroup) -> Tensor:
    """Return the bias (B, H, L, L), -inf where masked."""
    tokens = TokenView.of(inputs, group.gather_BL)
    bias_BHLL = pair_bias(position_bias, tokens, tokens, inputs.segment_rel)
    # Padding attends to every token of its example: a fully masked query would become NaN.
    allowed = group.valid_BL[:, None, :] & (visible(tokens, tokens) | ~group.valid_BL[:, :, None])
    return bias_BHLL.masked_fill_(~allowed[:, None], float("-inf"))
