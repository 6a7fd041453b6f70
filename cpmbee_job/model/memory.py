"""Calculate the GPU memory that training needs, without allocating anything and without torch.

The activations kept for the backward pass were counted on a CPU, tensor by tensor. On one H200, steps at the 10B's
shape used 0.92 to 0.99 of the calculated memory (docs/explanation/gpus.md); reserved memory beyond that was not
measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cpmbee_job.model.config import ModelConfig

TARGETS_AT_ONCE = 512
"""Targets whose logits exist at the same time: 170 MiB in fp32 for a vocabulary of 86,583."""
_GATHERED = 2
"""Layers that are gathered at the same time with `sharded`: the current one and the next."""
_PADDING = 1.25
"""Padded tokens in attention per token: examples of similar length are padded to one length."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one GPU, by purpose."""

    base: int
    trained: int
    """Trained weights, their Adam moments and gradients."""
    activations: int
    biases: int
    logits: int

    @property
    def total(self) -> int:
        return self.base + self.trained + self.activations + self.biases + self.logits

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in vars(self).items())
        return f"{self.total / 2**30:.1f} GiB ({parts})"


def footprint(
    config: ModelConfig,
    *,
    rows: int,
    max_length: int,
    itemsize: int,
    lora: tuple[int, Sequence[str]] | None,
    shares: int = 1,
    recompute_layers: int = 0,
) -> Footprint:
    """Calculate the footprint of steps over `rows` packed rows of one example of `max_length` tokens: the worst case.

    `itemsize`: bytes per number of the compute dtype. `lora`: r and the layer names, or None for full fine-tuning.
    `shares`: number of ranks that the layers of the base are sharded over.
    """
    layer_sizes = [num_layer_parameters(config, layer) for layer in range(config.num_layers)]
    outside = (config.vocab_size + 1) * config.dim_model + config.num_heads * (
        config.position_bias_num_buckets + config.position_bias_num_segment_buckets
    )
    held = outside + sum(layer_sizes)
    if shares > 1:
        held = outside + sum(layer_sizes) // shares + _GATHERED * max(layer_sizes)
    tokens = rows * max_length
    kept = [_activations(config, layer, itemsize, frozen=lora is not None) for layer in range(config.num_layers)]
    recomputed, rest = kept[:recompute_layers], kept[recompute_layers:]
    per_token = sum(rest) + len(recomputed) * itemsize * config.dim_model + max(recomputed, default=0)
    # Temporary tensors of one layer: its gradients, and the residual stream before and after it.
    per_token += itemsize * (4 * config.dim_model + 3 * config.dim_ff)
    width = max(config.vocab_size, config.dim_model)
    return Footprint(
        base=held * itemsize,
        trained=_trained(config, held, itemsize, lora),
        activations=tokens * per_token,
        # the gradient too if they are trained
        biases=rows * max_length**2 * config.num_heads * itemsize * (1 if lora is not None else 2),
        # in the model's dtype, in fp32, and the gradient
        logits=min(TARGETS_AT_ONCE, tokens) * width * (2 * itemsize + 8),
    )


def num_layer_parameters(config: ModelConfig, layer: int) -> int:
    has_attention, has_ffn = config.blocks[layer]
    attention = (4 * config.num_heads * config.dim_head + 1) * config.dim_model
    return has_attention * attention + has_ffn * (3 * config.dim_ff + 1) * config.dim_model


def num_lora_parameters(config: ModelConfig, r: int, modules: Sequence[str]) -> int:
    heads = config.dim_model + config.num_heads * config.dim_head
    ffn = config.dim_model + config.dim_ff
    attention = {"project_q": heads, "project_k": heads, "project_v": heads, "attention_out": heads}
    feed_forward = {"w_0": ffn, "w_1": ffn, "w_out": ffn}
    return r * sum(
        has_attention * sum(attention.get(name, 0) for name in modules)
        + has_ffn * sum(feed_forward.get(name, 0) for name in modules)
        for has_attention, has_ffn in config.blocks
    )


def _trained(config: ModelConfig, held: int, itemsize: int, lora: tuple[int, Sequence[str]] | None) -> int:
    """In fp32: two moments, the gradient (twice during the all-reduce) and the weights. In half precision, full
    fine-tuning adds the model's own weights and their gradients."""
    if lora is not None:
        return 20 * num_lora_parameters(config, *lora)
    return held * (16 if itemsize == 4 else 20 + itemsize)


def _activations(config: ModelConfig, layer: int, itemsize: int, *, frozen: bool) -> int:
    """Bytes per token that a layer keeps for the backward pass. A frozen weight does not need its input."""
    has_attention, has_ffn = config.blocks[layer]
    norm = itemsize * config.dim_model  # its input
    # Padded queries, keys, values and output; and LoRA's input.
    heads = config.num_heads * config.dim_head
    attention = itemsize * (int(4 * _PADDING * heads) + config.dim_model)
    ffn = itemsize * 3 * config.dim_ff
    if not frozen:
        attention += itemsize * heads  # input of attention_out
        ffn += itemsize * (config.dim_model + config.dim_ff)  # inputs of w_0 and w_1, and of w_out
    return has_attention * (norm + attention) + has_ffn * (norm + ffn)
