"""Collate packed rows into the model's inputs, on one core."""

import pickle
import time
from collections.abc import Iterator

import torch

from benchmarks import inputs
from benchmarks.measure import Figure, duration, one_core, rate, timed
from benchmarks.original import GreedyTokenizer, packed
from cpmbee_job.data.dataset.order import Order
from cpmbee_job.data.dataset.shards import PackedDataset
from cpmbee_job.data.encode.examples import parse_object
from cpmbee_job.data.read.formats import ccpm_example
from cpmbee_job.train.batches import Batches, RankLoader, Vocabulary

_MARK = 2_000_000  # tokens per second
_BATCH_SIZE = 5  # the tutorial's


def figures(quick: bool) -> Iterator[Figure]:
    with one_core():
        num_tokens, seconds = collate_epochs(inputs.prepared_ccpm(quick), 8 if quick else 10)
        num_original, original_seconds = _original(250 if quick else 2_000)
    yield Figure(
        what="packed rows to collated batches, one core",
        ours=rate(num_tokens, seconds, "tokens"),
        baseline=rate(_MARK, 1, "tokens") + ", the target",
        ratio=num_tokens / seconds / _MARK,
        mark=1,
    )
    yield Figure(
        what="records to padded batches, one core",
        ours=rate(num_tokens, seconds, "tokens"),
        baseline=rate(num_original, original_seconds, "tokens") + ", as each rank of the original",
        ratio=(num_tokens / seconds) / (num_original / original_seconds),
    )
    step_tokens, step_seconds = _training_step()
    share = (seconds / num_tokens) / (step_seconds / step_tokens)
    yield Figure(
        what="collating, share of a training step (see step)",
        ours=duration(seconds / num_tokens * step_tokens),
        baseline=f"{duration(step_seconds)}, a step of {step_tokens:,} tokens",
        ratio=share,
        mark=0.02,
        bound="at most",
    )


def collate_epochs(dataset: PackedDataset, epochs: int) -> tuple[int, float]:
    """Return tokens and seconds of the batches of several epochs."""
    tokenizer = inputs.tokenizer()
    vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    order = Order(dataset.num_rows, _BATCH_SIZE, seed=0)
    last = epochs * order.steps_per_epoch
    loader = RankLoader(dataset, vocabulary, 0, 1, _BATCH_SIZE, torch.device("cpu"))
    start = time.perf_counter()
    batches = Batches(loader, order, first=1, last=last)
    num_tokens = sum(len(part.ids) for batch in batches for part in batch.micro_batches)
    return num_tokens, time.perf_counter() - start


def _original(num_examples: int) -> tuple[int, float]:
    """Return tokens and seconds of padding records into arrays."""
    tokenizer = GreedyTokenizer(inputs.vocabulary())
    examples = (ccpm_example(parse_object(line)) for line in inputs.ccpm_lines(num_examples))
    records = [pickle.dumps(example) for example in examples]
    start = time.perf_counter()
    batches = list(packed(tokenizer, map(pickle.loads, records)))
    seconds = time.perf_counter() - start
    return sum(int(batch["length"].sum()) for batch in batches), seconds


def _training_step() -> tuple[int, float]:
    """Return tokens and seconds of a step of the small model in `step`, on all cores."""
    from benchmarks.step import OurStep, ccpm  # imports torch

    case = ccpm(1)
    step = OurStep(case)
    step()
    return case.num_tokens, min(timed(step) for _ in range(3))
