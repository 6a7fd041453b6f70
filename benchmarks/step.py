"""Measure a training step on the CPU: LoRA on a model of width 256 with 4 layers, packed rows of 2048 tokens.

The baseline is the dense formulation (`dense`) with the same packed rows, weights and targets. In the original all
extra columns of a batch compete for each target (docs/design.md, Loss); here both do so, so that their losses are
equal. Each figure is compared with the better of two variants: time with the one that keeps all activations for the
backward pass, memory with the one that recomputes them, as the original does.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import numpy as np
import torch

from benchmarks import inputs
from benchmarks.dense import dense_losses
from benchmarks.measure import Figure, duration, in_fresh_process, megabytes, own_memory, paired
from benchmarks.original import MAX_LENGTH, Batch, GreedyTokenizer, Row, encode, padded
from cpmbee_job.data.dataset.collate import Collated, collate
from cpmbee_job.data.dataset.pack import pack
from cpmbee_job.data.dataset.table import Table
from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.data.encode.examples import Example, parse_object
from cpmbee_job.data.read.formats import ccpm_example
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.lora import insert_lora
from cpmbee_job.model.net.cpmbee import CpmBee, init_weights
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.spec.training import LoraSpec, TrainSpec
from cpmbee_job.train.engine.torch_engine import TorchEngine

_SIZES = {"dim_model": 256, "num_heads": 8, "dim_head": 32, "dim_ff": 640, "num_layers": 4, "half": False}
_TRAIN = TrainSpec(lr=1e-3)
_LORA = LoraSpec()
_LOSS_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """The same packed rows for both."""

    ours: Collated
    dense: Batch
    vocab_size: int

    @property
    def num_tokens(self) -> int:
        return len(self.ours.ids)

    @classmethod
    def of(cls, rows: Sequence[Sequence[Example]]) -> Self:
        tokenizer, greedy = inputs.tokenizer(), GreedyTokenizer(inputs.vocabulary())
        encoded = [encode_example(tokenizer, example) for row in rows for example in row]
        table = Table.of(encoded, np.repeat(np.arange(len(rows)), [len(row) for row in rows]))
        ours = collate(table, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
        dense = padded(greedy, [_row(greedy, row) for row in rows])
        return cls(replace(ours, columns=np.ones_like(ours.columns)), dense, tokenizer.vocab_size)


def _row(tokenizer: GreedyTokenizer, examples: Sequence[Example]) -> Row:
    row = Row()
    for example in examples:
        row.add(encode(tokenizer, example))
    return row


@lru_cache(1)
def ccpm(num_rows: int) -> Case:
    """Return full packed rows of CCPM."""
    examples = [ccpm_example(parse_object(line)) for line in inputs.ccpm_lines(200 * num_rows)]
    rows = pack([encode_example(inputs.tokenizer(), example).input_ids.size for example in examples], MAX_LENGTH)
    return Case.of([[examples[e] for e in np.flatnonzero(rows == row)] for row in range(num_rows)])


def one_long(answer_tokens: int, num_rows: int = 1) -> Case:
    """Return packed rows of one example of 2048 tokens, with `answer` tokens in its answer."""
    example: Example = {"input": "", "<ans>": inputs.long_text(answer_tokens, seed=1)}
    rest = MAX_LENGTH - encode_example(inputs.tokenizer(), example).input_ids.size
    return Case.of(num_rows * [[example | {"input": inputs.long_text(rest, seed=2)}]])


class OurStep:
    """Do forward pass, backward pass, clipping and update as in training, several times over the case; calls return the
    loss before the update."""

    def __init__(self, case: Case, times: int = 1) -> None:
        self._engine = TorchEngine(_model(case.vocab_size), _TRAIN, torch.device("cpu"))
        self._case, self._times = case, times

    def __call__(self) -> float:
        batches = [ModelInputs.from_numpy(**vars(self._case.ours))] * self._times
        return self._engine.step(1, batches, _TRAIN.lr, wants_stop=lambda: False).loss


class DenseStep:
    """Do the same steps in the dense formulation."""

    checkpointed = False

    def __init__(self, case: Case) -> None:
        model = _model(case.vocab_size)
        self._config, self._weights = model.config, dict(model.named_parameters())
        self._trained = [parameter for parameter in self._weights.values() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=_TRAIN.lr, weight_decay=_TRAIN.weight_decay)
        self._batch = case.dense

    def __call__(self) -> float:
        self._optimizer.zero_grad()
        loss = dense_losses(self._weights, self._config, self._batch, checkpointed=self.checkpointed).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._trained, _TRAIN.clip_grad)
        self._optimizer.step()
        return loss.item()


class CheckpointedDenseStep(DenseStep):
    """Recomputes activations inside layers."""

    checkpointed = True


def figures(quick: bool) -> Iterator[Figure]:
    case = ccpm(1)
    ours: list[float] = []
    dense: list[float] = []
    OurStep(case)()  # the first step of a process is slower
    step, dense_step = OurStep(case), DenseStep(case)
    seconds, dense_seconds = paired(
        lambda: ours.append(step()), lambda: dense.append(dense_step()), repeats=1 if quick else 4
    )
    yield _faster("training step, a packed row of 2048 from CCPM", seconds, dense_seconds, mark=10)
    yield Figure(
        what=f"its loss, largest difference in {len(ours)} steps",
        ours=f"{ours[-1]:.6f} in the last step",
        baseline=f"{dense[-1]:.6f}, dense",
        ratio=max(abs(a - b) / b for a, b in zip(ours, dense, strict=True)),
        mark=_LOSS_TOLERANCE,
        bound="at most",
    )
    num_steps = 1 if quick else 2
    with ThreadPoolExecutor(2) as pool:  # so that the memory of one does not depend on the other
        (before, peak), (dense_before, dense_peak) = pool.map(
            lambda kind: in_fresh_process(_memory, kind, case, num_steps), (OurStep, CheckpointedDenseStep)
        )
    yield Figure(
        what="its peak memory, above the process with its model",
        ours=megabytes(peak - before),
        baseline=f"{megabytes(dense_peak - dense_before)}, dense, activations recomputed",
        ratio=(peak - before) / (dense_peak - dense_before),
        mark=0.25,
        bound="at most",
    )
    yield Figure(
        what="its peak memory, the whole process",
        ours=megabytes(peak),
        baseline=f"{megabytes(dense_peak)}, the same",
        ratio=peak / dense_peak,
    )
    for answer_tokens in () if quick else (2, 1000):
        case = one_long(answer_tokens)
        OurStep(case)()
        seconds, dense_seconds = paired(OurStep(case), DenseStep(case), repeats=2)
        what = f"training step, one example of 2048, {answer_tokens:,} in its answer"
        yield _faster(what, seconds, dense_seconds, mark=1)


def _faster(what: str, seconds: float, dense_seconds: float, mark: float) -> Figure:
    return Figure(what, duration(seconds), f"{duration(dense_seconds)}, dense", dense_seconds / seconds, mark)


def _memory(step_class: Callable[[Case], Callable[[], float]], case: Case, num_steps: int) -> tuple[int, int]:
    """Return bytes before the first step, and the peak."""
    step = step_class(case)
    before, _ = own_memory()
    for _ in range(num_steps):
        step()
    return before, own_memory()[1]


def _model(vocab_size: int) -> CpmBee:
    """Draw the same weights each time. LoRA's B is not zero, so that A has gradients from the first step."""
    model = CpmBee(ModelConfig.from_dict({**_SIZES, "vocab_size": vocab_size}))
    init_weights(model, seed=0)
    insert_lora(model, _LORA.r, _LORA.alpha, _LORA.modules, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05, generator=generator)
    return model
