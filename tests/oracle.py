"""The dense formulation of CPM-Bee over packed rows, as the oracle of tests: one (length x length x heads) bias and
logits for every position of a row, straight from the definition. Slow and wasteful, on purpose.

A row batch is a dict of arrays: inputs, inputs_sub, context, sample_ids, num_segments, segment_ids,
segment_rel_offset, spans, target: (batch, seqlen); length: (batch,); segment_rel: (batch, entries); ext_ids, ext_sub.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cpmbee_job.model.config import ModelConfig

IGNORED = -100


def random_rows(rng: np.random.Generator, vocab_size: int, num_rows: int, num_examples: int) -> dict[str, np.ndarray]:
    """Packed rows of random examples: trees of segments, sub-tokens, answers, in-context samples, some padding."""
    rows = [[_random_example(rng, vocab_size) for _ in range(num_examples)] for _ in range(num_rows)]
    seqlen = max(sum(len(e["inputs"]) for e in row) for row in rows) + 3
    num_entries = max(sum(len(e["segment_rel"]) for e in row) for row in rows)
    per_token = ["inputs", "inputs_sub", "context", "sample_ids", "num_segments", "segment_ids"]
    batch = {name: np.zeros((num_rows, seqlen), np.int32) for name in [*per_token, "segment_rel_offset", "spans"]}
    batch["target"] = np.full((num_rows, seqlen), IGNORED, np.int32)
    batch["length"] = np.zeros(num_rows, np.int32)
    batch["segment_rel"] = np.zeros((num_rows, num_entries), np.int32)
    columns = sorted(
        {(i, s) for row in rows for e in row for i, s in zip(e["inputs"], e["inputs_sub"], strict=True) if s > 0}
    )
    columns = columns or [(0, 1)]
    batch["ext_ids"], batch["ext_sub"] = np.array(columns, np.int32).T
    for r, row in enumerate(rows):
        at = entry = 0
        for span, example in enumerate(row):
            end = at + len(example["inputs"])
            for name in per_token:
                batch[name][r, at:end] = example[name]
            batch["segment_rel_offset"][r, at:end] = example["rel_offset"] + entry
            batch["segment_rel"][r, entry : entry + len(example["segment_rel"])] = example["segment_rel"]
            batch["spans"][r, at:end] = span
            for j in range(at, end):
                if not batch["context"][r, j]:
                    batch["target"][r, j] = (
                        vocab_size + rng.integers(len(columns)) if j % 2 else rng.integers(vocab_size)
                    )
            at, entry = end, entry + len(example["segment_rel"])
        batch["length"][r] = at
        batch["spans"][r, at:] = len(row)
    return batch


def _random_example(rng: np.random.Generator, vocab_size: int) -> dict[str, np.ndarray]:
    parts: list[dict[str, np.ndarray]] = []
    for sample in range(rng.integers(1, 4)):
        num_segments = int(rng.integers(2, 5))
        length = int(rng.integers(num_segments, 40))
        relation = rng.integers(2, 65, (num_segments, num_segments))
        np.fill_diagonal(relation, 0)
        answer = np.sort(rng.random(length)) > 0.7
        parts.append({
            "inputs": rng.integers(0, vocab_size, length),
            "inputs_sub": rng.integers(0, 3, length) * (rng.random(length) < 0.2),
            "context": (~answer | (sample > 0)).astype(np.int32),
            "sample_ids": np.full(length, sample),
            "num_segments": np.full(length, num_segments),
            "segment_ids": np.sort(rng.integers(0, num_segments, length)),
            "rel_offset": np.full(length, sum(len(p["segment_rel"]) for p in parts)),
            "segment_rel": relation.flatten(),
        })  # fmt: skip
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def flatten_rows(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same examples as keyword arguments of `ModelInputs.from_numpy`; targets in the rows' order."""
    flat: dict[str, list[np.ndarray]] = {}
    lengths: list[int] = []
    rows: list[int] = []
    num_entries = batch["segment_rel"].shape[1]
    for r, length in enumerate(batch["length"]):
        spans = batch["spans"][r, :length]
        starts = np.flatnonzero(np.diff(spans, prepend=-1))
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            lengths.append(int(end - start))
            rows.append(r)
            flat.setdefault("positions", []).append(np.arange(end - start))
        for name in ("inputs", "inputs_sub", "context", "segment_ids", "sample_ids", "num_segments", "target"):
            flat.setdefault(name, []).append(batch[name][r, :length])
        flat.setdefault("rel_offset", []).append(batch["segment_rel_offset"][r, :length] + r * num_entries)
    whole = {name: np.concatenate(arrays).astype(np.int32) for name, arrays in flat.items()}
    targets = whole.pop("target")
    positions = np.flatnonzero(targets != IGNORED).astype(np.int32)
    return {
        "ids": whole["inputs"],
        "subs": whole["inputs_sub"],
        "positions": whole["positions"],
        "context": whole["context"].astype(bool),
        "segments": whole["segment_ids"],
        "samples": whole["sample_ids"],
        "num_segments": whole["num_segments"],
        "rel_offset": whole["rel_offset"],
        "segment_rel": batch["segment_rel"].flatten().astype(np.int32),
        "lengths": np.array(lengths, np.int32),
        "target_positions": positions,
        "targets": targets[positions],
        "ext_ids": batch["ext_ids"].astype(np.int32),
        "ext_subs": batch["ext_sub"].astype(np.int32),
        "columns": np.ones((len(positions), len(batch["ext_ids"])), dtype=np.bool_),  # as in the original
        "rows": np.array(rows, np.int32),
    }


def dense_logits(weights: dict[str, Tensor], config: ModelConfig, batch: dict[str, np.ndarray]) -> Tensor:
    """Logits (batch, seqlen, vocabulary + extra) of every position, padding included."""
    row = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
    bias, mask = _bias_and_mask(weights, config, row)
    hidden = _embed(weights, config, row["inputs"], row["inputs_sub"])
    for layer, (has_attention, has_ffn) in enumerate(config.blocks):
        prefix = f"encoder.layers.{layer}."
        if has_attention:
            update = _attend(weights, config, prefix + "self_att.", hidden, bias, mask)
            hidden = (hidden + update) / 1.05
        if has_ffn:
            x = _norm(weights[prefix + "ffn.layernorm_before_ffn.weight"], hidden, config)
            gate = F.gelu(_linear(weights, prefix + "ffn.ffn.w_in.w_0", x))
            x = gate * _linear(weights, prefix + "ffn.ffn.w_in.w_1", x)
            hidden = (hidden + _linear(weights, prefix + "ffn.ffn.w_out", x)) / 1.05
    hidden = _norm(weights["encoder.output_layernorm.weight"], hidden, config)
    table = weights["input_embedding.weight"]
    extra = _embed(weights, config, row["ext_ids"], row["ext_sub"])
    return torch.cat([hidden / math.sqrt(config.dim_model) @ table.T, hidden @ extra.T], dim=-1)


def dense_losses(weights: dict[str, Tensor], config: ModelConfig, batch: dict[str, np.ndarray]) -> Tensor:
    """Loss of each target, in the rows' order."""
    logits = dense_logits(weights, config, batch).flatten(0, 1)
    targets = torch.from_numpy(batch["target"].flatten().astype(np.int64))
    return F.cross_entropy(logits[targets != IGNORED], targets[targets != IGNORED], reduction="none")


def _bias_and_mask(weights: dict[str, Tensor], config: ModelConfig, row: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    num_rows, seqlen = row["inputs"].shape
    table = weights["position_bias.relative_attention_bias"]
    bias = torch.zeros(num_rows, config.num_heads, seqlen, seqlen)
    mask = torch.zeros(num_rows, seqlen, seqlen, dtype=torch.bool)
    for r in range(num_rows):
        sample, span, context = row["sample_ids"][r], row["spans"][r], row["context"][r].bool()
        together = (sample[:, None] == sample) & (span[:, None] == span)
        entry = row["segment_ids"][r] * row["num_segments"][r] + row["segment_rel_offset"][r]
        entry = entry[:, None] + row["segment_ids"][r]
        bucket = torch.ones_like(entry)
        bucket[together] = row["segment_rel"][r][entry[together].long()].to(bucket.dtype)
        distance = torch.arange(seqlen)[None, :] - torch.arange(seqlen)[:, None]
        index = torch.where(
            bucket == 0, _distance_bucket(config, distance), bucket - 1 + config.position_bias_num_buckets
        )
        bias[r] = table[index.long()].permute(2, 0, 1)
        inside = torch.arange(seqlen) < row["length"][r]
        sees = context[None, :] | (~context[:, None] & (distance <= 0))
        sees &= (sample[:, None] == 0) | (sample[:, None] == sample)
        mask[r] = sees & (span[:, None] == span) & inside[:, None] & inside
    return bias, mask


def _distance_bucket(config: ModelConfig, distance: Tensor) -> Tensor:
    half = config.position_bias_num_buckets // 2
    exact = half // 2
    size = distance.abs()
    steps = torch.log(size.clamp(min=1).float() / exact) / math.log(config.position_bias_max_distance / exact)
    far = torch.clamp(exact + (steps * (half - exact)).int(), max=half - 1)
    return torch.where(size < exact, size, far) + half * (distance > 0)


def _attend(
    weights: dict[str, Tensor], config: ModelConfig, prefix: str, hidden: Tensor, bias: Tensor, mask: Tensor
) -> Tensor:
    x = _norm(weights[prefix + "layernorm_before_attention.weight"], hidden, config)
    heads = (*x.shape[:2], config.num_heads, config.dim_head)
    q, k, v = (_linear(weights, f"{prefix}self_attention.project_{n}", x).view(heads).transpose(1, 2) for n in "qkv")
    scores = q @ k.transpose(-1, -2) / math.sqrt(config.dim_head) + bias
    scores = scores.masked_fill(~mask[:, None], float("-inf"))
    probability = torch.softmax(scores, dim=-1).masked_fill(~mask[:, None], 0.0)
    out = (probability @ v).transpose(1, 2).flatten(2)
    return _linear(weights, prefix + "self_attention.attention_out", out)


def _embed(weights: dict[str, Tensor], config: ModelConfig, ids: Tensor, subs: Tensor) -> Tensor:
    x = weights["input_embedding.weight"][ids.long()] / math.sqrt(config.dim_model)
    frequency = 1.0 / 10000 ** (torch.arange(0, config.dim_model, 2) / config.dim_model)
    angle = (subs.float() * config.distance_scale)[..., None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * angle.cos() + torch.cat([-second, first], dim=-1) * angle.sin()


def _norm(weight: Tensor, x: Tensor, config: ModelConfig) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.eps) * weight


def _linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """With a LoRA pair beside the weight, if there is one (alpha / r = 2)."""
    y = x @ weights[f"{name}.weight"].T / math.sqrt(x.shape[-1])
    if f"{name}.lora.lora_A" in weights:
        y = y + 2 * x @ weights[f"{name}.lora.lora_A"].T @ weights[f"{name}.lora.lora_B"].T
    return y
