"""Collation against the arrays that the original made of 64 examples."""

import json

import numpy as np

from cpmbee_job.data.dataset.collate import Collated, collate
from cpmbee_job.data.dataset.table import Table
from cpmbee_job.data.encode.encoder import Encoded, encode_example
from cpmbee_job.data.encode.tokenizer import Tokenizer
from tests.conftest import needs_reference

ROW = 512
BATCH = 2


def _packed_like_the_original(examples: list[Encoded]) -> list[list[list[Encoded]]]:
    """Put each example into the open row that it fills best; a third row closes the first two as a batch."""
    batches, rows = [], []
    for example in examples:
        spaces = [(ROW - sum(e.input_ids.size for e in row), number) for number, row in enumerate(rows)]
        fitting = [place for place in spaces if place[0] >= example.input_ids.size]
        if fitting:
            rows[min(fitting)[1]].append(example)
        else:
            rows.append([example])
        if len(rows) > BATCH:
            batches.append(rows[:BATCH])
            rows = rows[BATCH:]
    return [*batches, *([rows] if rows else [])]


def _in_the_order_drawn(example: dict) -> dict:
    """Return the example with the key order that the original drew for its nested answer: the second key first."""
    answer = example["<ans>"]
    return example if isinstance(answer, str) else {**example, "<ans>": dict(reversed(answer.items()))}


def _dense(
    collated: Collated, num_rows: int, vocab_size: int, columns: dict[tuple[int, int], int]
) -> dict[str, np.ndarray]:
    """Convert our arrays to the original's, with one line per row."""
    row_of_token = np.repeat(collated.rows, collated.lengths)
    lengths = np.bincount(row_of_token, minlength=num_rows)
    column = np.arange(row_of_token.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)

    def spread(values: np.ndarray, dtype: type = np.int32, fill: int = 0) -> np.ndarray:
        out = np.full((num_rows, ROW), fill, dtype=dtype)
        out[row_of_token, column] = values
        return out

    first_examples = np.searchsorted(collated.rows, collated.rows)
    spans = np.arange(collated.rows.size) - first_examples
    rel_starts = [collated.rel_offset[row_of_token == row].min() for row in range(num_rows)]
    tables = np.split(collated.segment_rel, rel_starts[1:])
    segment_rel = np.zeros((num_rows, max(map(len, tables))), dtype=np.int32)
    for row, table in enumerate(tables):
        segment_rel[row, : len(table)] = table
    targets = np.full(row_of_token.size, -100)
    their_class = [
        vocab_size + columns[int(collated.ext_ids[c - vocab_size]), int(collated.ext_subs[c - vocab_size])]
        if c >= vocab_size
        else c
        for c in collated.targets.tolist()
    ]
    targets[collated.target_positions] = their_class
    return {
        "inputs": spread(collated.ids),
        "inputs_sub": spread(collated.subs),
        "length": lengths.astype(np.int32),
        "context": spread(collated.context, np.bool_),
        "sample_ids": spread(collated.samples),
        "num_segments": spread(collated.num_segments),
        "segment_ids": spread(collated.segments),
        "segment_rel_offset": spread(collated.rel_offset - np.array(rel_starts)[row_of_token]),
        "segment_rel": segment_rel,
        "spans": spread(np.repeat(spans, collated.lengths)),
        "target": spread(targets, fill=-100),
        "task_ids": np.zeros((num_rows, ROW), dtype=np.int32),
    }


@needs_reference
def test_packed_batches_equal_the_originals(reference):
    tokenizer = Tokenizer.from_file(reference / "model" / "vocab.txt")
    lines = (reference / "reference" / "packed_rows.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [encode_example(tokenizer, _in_the_order_drawn(json.loads(line))) for line in lines]
    expected = np.load(reference / "reference" / "packed_batches.npz")
    batches = _packed_like_the_original(examples)
    assert len(batches) == len({key.split(".")[0] for key in expected.files})

    for number, batch in enumerate(batches):
        rows = np.repeat(np.arange(len(batch)), [len(row) for row in batch])
        table = Table.of([example for row in batch for example in row], rows)
        collated = collate(table, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)

        pairs = list(zip(expected[f"{number}.ext_ids"].tolist(), expected[f"{number}.ext_sub"].tolist(), strict=True))
        # The placeholder is the original's for a batch, ours for an example, that has no numbered token.
        ours = set(zip(collated.ext_ids.tolist(), collated.ext_subs.tolist(), strict=True))
        assert ours - {(0, 1)} == set(pairs) - {(0, 1)}
        columns = {pair: column for column, pair in enumerate(pairs)}
        for name, array in _dense(collated, len(batch), tokenizer.vocab_size, columns).items():
            np.testing.assert_array_equal(array, expected[f"{number}.{name}"], err_msg=f"batch {number}: {name}")
            assert array.dtype == expected[f"{number}.{name}"].dtype


@needs_reference
def test_positions_restart_with_every_example(reference):
    tokenizer = Tokenizer.from_file(reference / "model" / "vocab.txt")
    lines = (reference / "reference" / "packed_rows.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [encode_example(tokenizer, json.loads(line)) for line in lines[:5]]
    collated = collate(Table.of(examples), tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    assert collated.positions.tolist() == [p for e in examples for p in range(e.input_ids.size)]
