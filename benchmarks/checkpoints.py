"""Measure how long checkpoints block the training thread, and the cost of `train.deterministic`.

All weights of a small model are trained, so that a state is large relative to the time of a step: 17 MB of weights and
34 MB of moments. (LoRA on CPM-Bee 10B has 75 MB in all, and a step takes seconds.) The object store accepts 50 MB/s, so
that the next steps run during the upload of a checkpoint.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Figure
from cpmbee_job.data.dataset.collate import collate
from cpmbee_job.data.dataset.table import Table
from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.demo import SPECIAL, WORDS, reports
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.net.cpmbee import CpmBee, init_weights
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.model.weights.model_folder import ModelFiles
from cpmbee_job.run.run import Run
from cpmbee_job.spec import parse_spec
from cpmbee_job.spec.training import TrainSpec
from cpmbee_job.store.files import FileStore
from cpmbee_job.train.attempt import Attempt
from cpmbee_job.train.batches import Batch
from cpmbee_job.train.engine.deterministic_engine import DeterministicEngine
from cpmbee_job.train.engine.torch_engine import TorchEngine
from cpmbee_job.train.loop_state import LoopState
from cpmbee_job.train.output.progress import Progress
from cpmbee_job.train.output.publish import Provenance, Publisher
from cpmbee_job.train.output.uploader import num_bytes
from cpmbee_job.train.world import World

_SIZES = {"dim_model": 256, "num_heads": 8, "dim_head": 32, "dim_ff": 640, "num_layers": 4, "half": False}
_VOCABULARY = 5000
_TRAIN = TrainSpec(lr=1e-3, use_delta=False)
_INTERVAL = 10
_BYTES_PER_SECOND = 50e6
_ROWS, _REPORTS = 4, 4


class SlowStore(FileStore):
    """A folder with a limited write rate."""

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        time.sleep(len(data) / _BYTES_PER_SECOND)
        return super().put(key, data, if_none_match=if_none_match, if_match=if_match)


def figures(quick: bool) -> Iterator[Figure]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of two cores; the other one writes
    try:
        yield from _figures(quick)
    finally:
        torch.set_num_threads(threads)


def _figures(quick: bool) -> Iterator[Figure]:
    engine = TorchEngine(_model(), _TRAIN, torch.device("cpu"))
    num_steps = (2 if quick else 6) * _INTERVAL
    step_seconds, blocked, size = _train(engine, [_batch(range(_ROWS))], num_steps)
    share = sum(blocked) / (sum(step_seconds) + sum(blocked))
    yield Figure(
        what=f"training blocked by checkpoints, one every {_INTERVAL} steps",
        ours=f"{_milliseconds(statistics.mean(blocked))} each, {size / 1e6:.0f} MB",
        baseline=f"{_milliseconds(statistics.mean(step_seconds))}, a step",
        ratio=share,
        mark=0.05,
        bound="at most",
    )

    deterministic = DeterministicEngine(_model(), _TRAIN, torch.device("cpu"))
    one_by_one, together = [_batch(range(row, row + 1)) for row in range(_ROWS)], [_batch(range(_ROWS))]
    seconds: tuple[list[float], list[float]] = ([], [])
    for step in range(1, 4 if quick else 12):
        seconds[0].append(_timed_step(deterministic, step, one_by_one))
        seconds[1].append(_timed_step(engine, step, together))
    ours, theirs = (statistics.median(times[1:]) for times in seconds)
    yield Figure(
        what=f"a deterministic step of {_ROWS} rows of {_REPORTS} reports",
        ours=_milliseconds(ours),
        baseline=f"{_milliseconds(theirs)}, all rows at once",
        ratio=ours / theirs,
        bound="at most",
    )


def _train(
    engine: TorchEngine, micro_batches: list[ModelInputs], num_steps: int
) -> tuple[list[float], list[float], int]:
    """Return seconds of each step, seconds that each checkpoint blocked, and bytes of a state."""
    with tempfile.TemporaryDirectory(prefix="cpmbee-bench-") as name:
        text = f"name: bench\nmodel: m/\ndata: {{train: t.jsonl}}\noutput: {name}\n"
        begun = Run.begin(parse_spec(text, source="bench"), "run")
        run = Run(begun.url, SlowStore(begun.url), begun.spec, begun.storage)
        files = ModelFiles(config=Path(name), vocab=Path(name), weights=())
        world = World(0, 0, 1, torch.device("cpu"))
        publisher = Publisher(Attempt(run, world, 1), engine, Progress(), Provenance(files, "", None))
        steps, blocked = [], []
        _timed_step(engine, 0, micro_batches)  # the first step is slower
        for step in range(1, num_steps + 1):
            steps.append(_timed_step(engine, step, micro_batches))
            start = time.perf_counter()
            publisher.record_rows(Batch(step, 1, [step], [step], micro_batches))
            if step % _INTERVAL == 0:
                publisher.save_checkpoint(LoopState(step=step))
                blocked.append(time.perf_counter() - start)
        publisher.suspend()
        return steps, blocked, num_bytes(engine.state().tensors)


def _timed_step(engine: TorchEngine, step: int, micro_batches: list[ModelInputs]) -> float:
    start = time.perf_counter()
    engine.step(step, micro_batches, _TRAIN.lr, lambda: False)
    return time.perf_counter() - start


def _model() -> CpmBee:
    model = CpmBee(ModelConfig.from_dict({"vocab_size": _VOCABULARY, **_SIZES}))
    init_weights(model, seed=0)
    return model.requires_grad_(True)


def _batch(rows: range) -> ModelInputs:
    """Packed rows of several weather reports each."""
    tokenizer = Tokenizer.from_bytes("\n".join(dict.fromkeys([*SPECIAL, *WORDS])).encode())
    encoded = [encode_example(tokenizer, dict(report)) for row in rows for report in reports(_REPORTS, seed=row)]
    table = Table.of(encoded, np.repeat(np.arange(len(rows)), _REPORTS))
    return ModelInputs.from_numpy(**vars(collate(table, _VOCABULARY, tokenizer.bos_id, tokenizer.eos_id)))


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
