"""Baselines and our code compute the same results."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import original
from benchmarks.dense import IGNORED, dense_losses
from cpmbee_job.data.dataset.collate import collate
from cpmbee_job.data.dataset.shards import PackedDataset
from cpmbee_job.data.dataset.table import Table
from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.data.encode.examples import parse_object
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.prepare import Preparation, prepare
from cpmbee_job.data.prepare.shard_maker import PrepareSettings
from cpmbee_job.data.read.formats import ccpm_example
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.net.cpmbee import CpmBee, init_weights
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.store.urls import open_store

CHARACTERS = "今天天气不错，你好吗？hello the 它們魚 \n"  # some that the vocabulary lacks, some words of several
SPECIAL = ["<sep>", "<mask>", "<mask_0>", "<mask_1>", "<<"]


@pytest.fixture
def tokenizer(tiny_vocab: Path) -> Tokenizer:
    return Tokenizer.from_file(tiny_vocab)


@pytest.fixture
def greedy(tiny_vocab: Path) -> original.GreedyTokenizer:
    return original.GreedyTokenizer(tiny_vocab.read_bytes())


def text(draw: random.Random, length: int) -> str:
    return "".join(draw.choices([*CHARACTERS, *SPECIAL], k=length))


def ccpm_lines(count: int) -> list[str]:
    draw = random.Random(3)
    rows = []
    for _ in range(count):
        options = "".join(f"[{number}]{text(draw, draw.randrange(1, 12))}" for number in range(4))
        passage = text(draw, draw.randrange(1, 60))
        rows.append({"target": str(draw.randrange(4)), "input": f"[翻译]{passage}{options}[答案]"})
    return [json.dumps(row, ensure_ascii=False) for row in rows]


@pytest.mark.parametrize("seed", range(20))
def test_encodings_are_equal(tokenizer, greedy, seed):
    draw = random.Random(seed)
    example = {
        "input": text(draw, draw.randrange(80)),
        "options": {"<option_0>": text(draw, 5), "<option_1>": {"它": text(draw, 9), "天气": text(draw, 3)}},
        "<ans>": {"first": text(draw, 4), "second": {"a": text(draw, 2)}} if seed % 2 else text(draw, 7),
    }
    ours, theirs = encode_example(tokenizer, example), original.encode(greedy, example)
    np.testing.assert_array_equal(theirs.inputs, ours.input_ids)
    np.testing.assert_array_equal(theirs.inputs_sub, ours.input_id_subs)
    np.testing.assert_array_equal(theirs.context, ours.context)
    np.testing.assert_array_equal(theirs.segment_ids, ours.segment_ids)
    np.testing.assert_array_equal(theirs.segment_rel, ours.segment_rel)
    assert theirs.num_segments == ours.num_segments


def test_both_pipelines_keep_every_example_once(tmp_path, tiny_vocab, greedy, capsys):
    raw = tmp_path / "raw.jsonl"
    raw.write_text("\n".join(ccpm_lines(700)) + "\n", encoding="utf-8")
    original.main(str(raw), str(tiny_vocab), str(tmp_path))
    counts = json.loads(capsys.readouterr().out)
    settings, store = PrepareSettings(2048, format="ccpm"), open_store(str(tmp_path / "rows"))
    index = prepare(Preparation(open_source(str(raw)), settings, Tokenizer.from_file(tiny_vocab)), store)
    assert counts["tokens"] == index.tokens
    dataset = PackedDataset.open(store)
    table = dataset.table(np.arange(dataset.num_rows))
    ours = np.split(table.input_ids, np.cumsum(table.sample_lengths)[:-1])
    batches = list(original.packed(greedy, original.read(tmp_path / "records")))
    assert sum(len(batch["length"]) for batch in batches) == counts["rows"] > original.ROWS_OF_A_BATCH
    theirs = [
        row[:length][span[:length] == number]
        for batch in batches
        for row, span, length in zip(batch["inputs"], batch["spans"], batch["length"], strict=True)
        for number in range(span[:length].max() + 1)
    ]
    assert sorted(map(tuple, theirs)) == sorted(map(tuple, ours))


def test_losses_of_padded_and_packed_rows_are_equal(tokenizer, greedy):
    examples = [ccpm_example(parse_object(line)) for line in ccpm_lines(12)]
    rows = [examples[:5], examples[5:]]
    table = Table.of([encode_example(tokenizer, example) for example in examples], np.repeat([0, 1], [5, 7]))
    collated = collate(table, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    collated.columns[:] = True  # as in the original, where all columns of a batch compete
    open_rows = [original.Row() for _ in rows]
    for row, members in zip(open_rows, rows, strict=True):
        for example in members:
            row.add(original.encode(greedy, example))
    batch = original.padded(greedy, open_rows)
    assert (batch["target"] >= tokenizer.vocab_size).any(), "no numbered token is predicted"
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim_model=16, num_heads=2, dim_head=8, dim_ff=24, num_layers=2, half=False
    )
    model = CpmBee(config)
    init_weights(model, seed=0)
    inputs = ModelInputs.from_numpy(**vars(collated))
    dense = dense_losses(dict(model.state_dict()), config, batch)
    assert len(dense) == (batch["target"] != IGNORED).sum()
    torch.testing.assert_close(model.target_losses(inputs, model(inputs)), dense, atol=5e-6, rtol=1e-5)


def test_activation_checkpointing_changes_no_gradient(tokenizer, greedy):
    row = original.Row()
    for line in ccpm_lines(4):
        row.add(original.encode(greedy, ccpm_example(parse_object(line))))
    batch = original.padded(greedy, [row])
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim_model=16, num_heads=2, dim_head=8, dim_ff=24, num_layers=2, half=False
    )
    gradients = []
    for checkpointed in (False, True):
        model = CpmBee(config)
        init_weights(model, seed=0)
        weights = dict(model.named_parameters())
        dense_losses(weights, config, batch, checkpointed=checkpointed).sum().backward()
        gradients.append([p.grad for name, p in weights.items() if name != "position_bias.relative_attention_bias"])
    for kept, again in zip(*gradients, strict=True):
        assert torch.isfinite(kept).all()
        torch.testing.assert_close(kept, again)
