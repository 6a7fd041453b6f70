"""How much memory a GPU needs for training, by arithmetic: nothing is allocated, no torch is imported.

What is kept for the way back was counted on a CPU, tensor by tensor. On one H200 steps at the 10b's shape took 0.92 to
0.99 of what this says (docs/gpu.md); what is reserved beyond that was not measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cpmbee_job.model.config import ModelConfig

TARGETS_AT_ONCE = 512
"""Targets whose logits exist at one time: 170 MiB in fp32 for a vocabulary of 86,583."""
_GATHERED = 2
"""Layers that are whole at one time where each rank holds a share: the one at work and the next."""
_PADDING = 1.25
"""Tokens in attention for each token of the stream: examples of similar length are padded to one."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one GPU, by what they hold."""

    base: int
    trained: int
    """Trained weights, their moments and gradients."""
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
    """Of steps over full `rows`, each of one example of `max_length` tokens, which is the worst case.

    `itemsize`: bytes of a number that the model computes in. `lora`: r and the names of the layers, or None where all
    weights are trained. `shares`: ranks over which the layers of the base are spread.
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
    again, rest = kept[:recompute_layers], kept[recompute_layers:]
    per_token = sum(rest) + len(again) * itemsize * config.dim_model + max(again, default=0)
    # What passes through on the way: a layer's gradients, and the stream before and after it.
    per_token += itemsize * (4 * config.dim_model + 3 * config.dim_ff)
    width = max(config.vocab_size, config.dim_model)
    return Footprint(
        base=held * itemsize,
        trained=_trained(config, held, itemsize, lora),
        activations=tokens * per_token,
        # and their gradient, where they are trained
        biases=rows * max_length**2 * config.num_heads * itemsize * (1 if lora is not None else 2),
        # in the model's type, in fp32, and their gradient
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
    """Two moments and the gradient, twice while it is reduced, in fp32, and the weights themselves; where the model's
    own weights are not fp32, these and their gradients come on top."""
    if lora is not None:
        return 20 * num_lora_parameters(config, *lora)
    return held * (16 if itemsize == 4 else 20 + itemsize)


def _activations(config: ModelConfig, layer: int, itemsize: int, *, frozen: bool) -> int:
    """Bytes for each token that a layer keeps for the way back. A frozen weight needs no input kept."""
    has_attention, has_ffn = config.blocks[layer]
    norm = itemsize * config.dim_model  # its input
    # Queries, keys, values and what comes out, padded; and LoRA's input.
    heads = config.num_heads * config.dim_head
    attention = itemsize * (int(4 * _PADDING * heads) + config.dim_model)
    ffn = itemsize * 3 * config.dim_ff
    if not frozen:
        attention += itemsize * heads  # what attention_out reads
        ffn += itemsize * (config.dim_model + config.dim_ff)  # what w_0 and w_1, and w_out read
    return has_attention * (norm + attention) + has_ffn * (norm + ffn)
