"""Packed rows for the oracle, which is the dense formulation in `benchmarks/dense.py`, and the same for the model."""

import numpy as np
from torch import Tensor

from benchmarks.dense import IGNORED
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.net.inputs import ModelInputs


def target_logits(model: CpmBee, inputs: ModelInputs, hidden: Tensor) -> Tensor:
    """Logits (T, V + X) at the target positions, from the hidden states of all tokens."""
    extra = model.input_embedding(inputs.ext_ids, inputs.ext_subs)
    return model.input_embedding.project(hidden.index_select(0, inputs.target_positions), extra)


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
