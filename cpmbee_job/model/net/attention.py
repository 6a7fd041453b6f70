"""Who attends to whom in a flat stream of examples, and the biases of doing so.

Examples never see each other, so each attends within itself: memory grows with the sum of squares of the examples'
lengths, not with the square of a row's. Tensor names end in their shape, see `inputs`; Q queries, K keys, P tokens of
all groups, padding included.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cpmbee_job.model.net.inputs import AttentionGroup, ModelInputs
from cpmbee_job.model.net.layers import BucketPositionBias


@dataclass(frozen=True)
class TokenView:
    """What decides how a token sees others. All (B, length), int32 but `context`."""

    positions: Tensor
    segments: Tensor
    samples: Tensor
    context: Tensor
    num_segments: Tensor
    rel_offset: Tensor

    @classmethod
    def of_group(cls, inputs: ModelInputs, group: AttentionGroup) -> "TokenView":
        fields = ("positions", "segments", "samples", "context", "num_segments", "rel_offset")
        return cls(**{name: getattr(inputs, name)[group.gather_BL] for name in fields})


def pair_bias(position_bias: BucketPositionBias, query: TokenView, key: TokenView, segment_rel: Tensor) -> Tensor:
    """Bias (B, H, Q, K) of each pair, whether or not the query may see the key."""
    same_sample = query.samples[:, :, None] == key.samples[:, None, :]
    entry = (query.rel_offset + query.segments * query.num_segments)[:, :, None] + key.segments[:, None, :]
    # A pair of two samples has no entry in either's table: its bucket is 1.
    segment_bucket = torch.where(same_sample, segment_rel[torch.where(same_sample, entry, 0)], 1)
    bias: Tensor = position_bias(key.positions[:, None, :] - query.positions[:, :, None], segment_bucket)
    return bias


def visible(query: TokenView, key: TokenView) -> Tensor:
    """Whether (B, Q, K) a query sees a key: context is seen by all, what is to be predicted only by its successors,
    and an in-context sample sees itself alone.
    """
    causal = ~query.context[:, :, None] & (key.positions[:, None, :] <= query.positions[:, :, None])
    sample = (query.samples[:, :, None] == 0) | (query.samples[:, :, None] == key.samples[:, None, :])
    return (key.context[:, None, :] | causal) & sample


class GroupedAttention:
    """Attention of a whole batch, group by group; the biases are computed once and serve all layers."""

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
    """The tokens (N, ...) as the groups have them, (P, ...). Padding has no gradient (no query sees it, and as a query
    it is dropped), so that the way back is a gather as well, not the sum over repeated tokens that torch makes of it.
    """

    @staticmethod
    def forward(ctx: Any, x_N: Tensor, gather_P: Tensor, restore_N: Tensor) -> Tensor:
        ctx.save_for_backward(restore_N)
        return x_N.index_select(0, gather_P)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (restore_N,) = ctx.saved_tensors
        return gradients[0].index_select(0, restore_N), None, None


class _Unpad(torch.autograd.Function):
    """Back from (P, ...) to (N, ...), where no token of the padded ones stands twice."""

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
    """Bias (B, H, L, L), -inf where a token must not look."""
    tokens = TokenView.of_group(inputs, group)
    bias_BHLL = pair_bias(position_bias, tokens, tokens, inputs.segment_rel)
    # Padding sees every token of its example: a row without any would turn into NaN, forward or backward.
    allowed = group.valid_BL[:, None, :] & (visible(tokens, tokens) | ~group.valid_BL[:, :, None])
    return bias_BHLL.masked_fill_(~allowed[:, None], float("-inf"))
