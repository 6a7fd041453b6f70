"""The layers of CPM-Bee, with the original's parameter names and arithmetic.

Tensor names end in their shape: N tokens, D model width, H heads, h width of a head, F feed-forward width.
Activations are a flat stream (N, D). The `Attend` argument of `forward` defines mask and bias.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cpmbee_job.model.config import ModelConfig


class Attend(Protocol):
    """Attention of one layer."""

    def __call__(self, layer: int, q_NHh: Tensor, k_NHh: Tensor, v_NHh: Tensor) -> Tensor:
        """Returns (N, H, h): for each query, the values weighted by softmax(q k / sqrt(h) + bias)."""


class Linear(nn.Module):
    """y = W x / sqrt(dim_in), without bias. The weights have unit scale."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        # OpenDelta reads a layer's size from these names.
        self.in_features = dim_in
        self.out_features = dim_out
        self.weight = nn.Parameter(torch.empty(dim_out, dim_in))

    def forward(self, x_ND: Tensor) -> Tensor:
        scaled: Callable[[Tensor, Tensor, float], Tensor] = _ScaledProduct.apply
        return scaled(x_ND, self.weight, 1 / math.sqrt(self.in_features))


class _ScaledProduct(torch.autograd.Function):
    """scale x W^T. The matrix product includes the scale in the forward and backward pass; a separate multiplication
    would read and write the whole result once more."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x_ND if weight.requires_grad else None, weight)
        ctx.scale = scale
        return _product(x_ND, weight.T, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_ND, weight = ctx.saved_tensors
        (gradient,) = gradients
        by_x = _product(gradient, weight, ctx.scale) if ctx.needs_input_grad[0] else None
        by_weight = None if x_ND is None else _product(gradient.T, x_ND, ctx.scale)
        return by_x, by_weight, None


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.addmm(a.new_empty(1), a, b, beta=0, alpha=scale)  # beta=0: the first argument is not read


class LayerNorm(nn.Module):
    """Root-mean-square norm with the mean square in fp32. In half precision the result is rounded once, after the
    weight; the original also rounds before it."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x_ND: Tensor) -> Tensor:
        return F.rms_norm(x_ND, self.weight.shape, self.weight, self.eps)


class SelfAttention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.dim_head = config.num_heads, config.dim_head
        dim_heads = config.num_heads * config.dim_head
        self.project_q = Linear(config.dim_model, dim_heads)
        self.project_k = Linear(config.dim_model, dim_heads)
        self.project_v = Linear(config.dim_model, dim_heads)
        self.attention_out = Linear(dim_heads, config.dim_model)

    def forward(self, x_ND: Tensor, attend: Attend) -> Tensor:
        q_NHh, k_NHh, v_NHh = (
            project(x_ND).view(-1, self.num_heads, self.dim_head)
            for project in (self.project_q, self.project_k, self.project_v)
        )
        out_ND: Tensor = self.attention_out(attend(self.layer, q_NHh, k_NHh, v_NHh).flatten(1))
        return out_ND


class SelfAttentionBlock(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layernorm_before_attention = LayerNorm(config.dim_model, config.eps)
        self.self_attention = SelfAttention(config, layer)
        self.dropout = nn.Dropout(config.dropout_p)

    def forward(self, x_ND: Tensor, attend: Attend) -> Tensor:
        update_ND = self.self_attention(self.layernorm_before_attention(x_ND), attend)
        return _add(x_ND, self.dropout(update_ND))


class GatedGelu(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w_0 = Linear(config.dim_model, config.dim_ff)
        self.w_1 = Linear(config.dim_model, config.dim_ff)

    def forward(self, x_ND: Tensor) -> Tensor:
        gated_NF: Tensor = F.gelu(self.w_0(x_ND)) * self.w_1(x_ND)
        return gated_NF


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w_in = GatedGelu(config)
        self.dropout = nn.Dropout(config.dropout_p)
        self.w_out = Linear(config.dim_ff, config.dim_model)

    def forward(self, x_ND: Tensor) -> Tensor:
        out_ND: Tensor = self.w_out(self.dropout(self.w_in(x_ND)))
        return out_ND


class FeedForwardBlock(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layernorm_before_ffn = LayerNorm(config.dim_model, config.eps)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout_p)

    def forward(self, x_ND: Tensor) -> Tensor:
        return _add(x_ND, self.dropout(self.ffn(self.layernorm_before_ffn(x_ND))))


class Layer(nn.Module):
    """Attention and feed-forward. A pruned model may have only one of them."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        has_attention, has_ffn = config.blocks[layer]
        # A missing block has no attribute, so that state-dict keys are the original's.
        if has_attention:
            self.self_att = SelfAttentionBlock(config, layer)
        if has_ffn:
            self.ffn = FeedForwardBlock(config)
        self.has_attention, self.has_ffn = has_attention, has_ffn

    def forward(self, x_ND: Tensor, attend: Attend) -> Tensor:
        if self.has_attention:
            x_ND = self.self_att(x_ND, attend)
        if self.has_ffn:
            x_ND = self.ffn(x_ND)
        return x_ND


class Encoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_layers))
        self.output_layernorm = LayerNorm(config.dim_model, config.eps)
        self.has_dropout = config.dropout_p > 0
        self.recompute_layers = 0
        """Number of layers, from the first, whose activations are recomputed in the backward pass."""

    def forward(self, x_ND: Tensor, attend: Attend) -> Tensor:
        recompute_layers = self.recompute_layers if torch.is_grad_enabled() else 0
        for number, layer in enumerate(self.layers):
            if number < recompute_layers:
                x_ND = checkpoint(layer, x_ND, attend, use_reentrant=False, preserve_rng_state=self.has_dropout)
            else:
                x_ND = layer(x_ND, attend)
        out_ND: Tensor = self.output_layernorm(x_ND)
        return out_ND


class Embedding(nn.Module):
    """Token embedding and tied output projection. A token's sub-number rotates its vector (rotary embedding), so that
    `<option_0>`, `<option_1>`, ... are distinct inputs and, as extra columns, distinct outputs."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dim = config.dim_model
        self.distance_scale = config.distance_scale
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.dim_model))

    def forward(self, ids_N: Tensor, subs_N: Tensor) -> Tensor:
        x_ND = F.embedding(ids_N, self.weight) / math.sqrt(self.dim)
        # Half-precision models were trained with angles rounded to fp16; bf16 is too coarse.
        angle_dtype = torch.float32 if x_ND.dtype == torch.float32 else torch.float16
        frequency = 1.0 / 10000 ** (torch.arange(0, self.dim, 2, device=x_ND.device, dtype=torch.float32) / self.dim)
        angle = (subs_N * self.distance_scale).to(angle_dtype)[:, None] * frequency.to(angle_dtype)
        angle_ND = torch.cat([angle, angle], dim=-1)
        half = self.dim // 2
        rotated_ND = torch.cat([-x_ND[:, half:], x_ND[:, :half]], dim=-1)
        return x_ND * angle_ND.cos().to(x_ND.dtype) + rotated_ND * angle_ND.sin().to(x_ND.dtype)

    def project(self, hidden_TD: Tensor, extra_XD: Tensor) -> Tensor:
        """Return logits (T, V + X) of the vocabulary and of the extra columns with the embeddings `extra_XD`."""
        vocabulary_TV = F.linear(hidden_TD / math.sqrt(self.dim), self.weight)
        return torch.cat([vocabulary_TV, F.linear(hidden_TD, extra_XD)], dim=-1)


class BucketPositionBias(nn.Module):
    """A learned bias per head and bucket: buckets of relative positions within a segment, then of relations between
    segments (bucket 1: the tokens belong to different in-context samples)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_buckets = config.position_bias_num_buckets
        self.max_distance = config.position_bias_max_distance
        num_rows = config.position_bias_num_buckets + config.position_bias_num_segment_buckets
        self.relative_attention_bias = nn.Parameter(torch.empty(num_rows, config.num_heads))

    def forward(self, distance: Tensor, segment_bucket: Tensor) -> Tensor:
        """Map key position - query position and segment bucket, both (..., Q, K), to biases (..., H, Q, K)."""
        row = torch.where(segment_bucket == 0, self._bucket(distance), segment_bucket - 1 + self.num_buckets)
        return F.embedding(row, self.relative_attention_bias).movedim(-1, -3).contiguous()

    def _bucket(self, distance: Tensor) -> Tensor:
        """Half of the buckets per direction: one for each small distance, then logarithmic."""
        per_direction = self.num_buckets // 2
        max_exact = per_direction // 2
        size = distance.abs()
        # In fp32 and in the original's order: other rounding could move a distance to another bucket.
        growth = torch.log(size.clamp(min=1).float() / max_exact) / math.log(self.max_distance / max_exact)
        large = (max_exact + (growth * (per_direction - max_exact)).int()).clamp(max=per_direction - 1)
        return torch.where(size < max_exact, size, large) + (distance > 0).int() * per_direction


def _add(x_ND: Tensor, update_ND: Tensor) -> Tensor:
    """Residual connection, divided by 1.05 as in the original to limit the scale."""
    return (x_ND + update_ND) / 1.05
