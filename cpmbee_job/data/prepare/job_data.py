"""Prepare the datasets of a job, and describe the result."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cpmbee_job.data.dataset.index import Index, sum_counts
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.prepare import Preparation, PrepareProgress, no_prepare_progress, prepare_below
from cpmbee_job.data.prepare.shard_maker import PrepareSettings
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.errors import ModelError, NotFoundError
from cpmbee_job.process.pod import num_cpus
from cpmbee_job.run.model_files import VOCABULARY
from cpmbee_job.spec import DataSetSpec, JobSpec, StorageSpec
from cpmbee_job.store.urls import open_store

_COUNTS = ("rows", "examples", "tokens", "target_tokens")
_COUNTERS = ("skipped", "warnings")


def prepare_job(
    spec: JobSpec,
    storage: StorageSpec,
    *,
    vocab: bytes | None = None,
    pod_index: int = 0,
    num_pods: int = 1,
    progress: PrepareProgress = no_prepare_progress,
) -> dict[str, Any]:
    """Prepare the job's datasets unless that has been done. Returns what the run is bound to (`Run.bind_data`).

    `vocab` defaults to the model folder's vocab.txt.
    """
    vocab = vocab or read_vocabulary(spec.model, storage)
    tokenizer = Tokenizer.from_bytes(vocab, source=f"{spec.model}/{VOCABULARY}")

    def prepared(sets: Iterable[DataSetSpec]) -> dict[str, Any]:
        found = []
        for one in sets:
            preparation = Preparation(
                source=open_source(one.path, storage),
                settings=_settings(spec, one),
                tokenizer=tokenizer,
                storage=storage,
                workers=num_cpus(),
                pod_index=pod_index,
                num_pods=num_pods,
                progress=progress,
            )
            found.append(_summary(one, *prepare_below(preparation, spec.output)))
        return _totals(found)

    return {
        "vocabulary": {"size": tokenizer.vocab_size, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id},
        "train": prepared(spec.data.train_sets),
        "eval": None if spec.data.eval is None else prepared([DataSetSpec(path=spec.data.eval)]),
    }


def read_vocabulary(model: str, storage: StorageSpec) -> bytes:
    """Read the `vocab.txt` of a model folder."""
    try:
        return open_store(model, storage).get(VOCABULARY)
    except NotFoundError as error:
        raise ModelError(
            f"{model}: {VOCABULARY} is missing", hint="`model` names a folder with vocab.txt, config.json and weights"
        ) from error


def _settings(spec: JobSpec, one: DataSetSpec) -> PrepareSettings:
    return PrepareSettings(
        max_length=spec.train.max_length,
        format=one.format or spec.data.format,
        on_error=spec.data.on_error,
        too_long=spec.data.too_long,
        strict=spec.data.strict,
        in_context=one.in_context,
    )


def _summary(one: DataSetSpec, folder: str, index: Index) -> dict[str, Any]:
    return {
        "url": one.path,
        "weight": one.weight,
        "prepared": folder.rstrip("/").rpartition("/")[2],
        "listing": index.listing,
        **{name: getattr(index, name) for name in _COUNTS},
        **{name: dict(getattr(index, name)) for name in _COUNTERS},
    }


def _totals(sets: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the document of a split: its datasets and their totals."""
    sums = {name: sum(one[name] for one in sets) for name in _COUNTS}
    counters = {name: sum_counts(one[name] for one in sets) for name in _COUNTERS}
    return {**sums, **counters, "sets": sets}


def describe(split: str, record: dict[str, Any]) -> str:
    """Describe a prepared split in a line, and each of several datasets in another."""
    sets = record["sets"]
    lines = [f"{split}: {_describe(record)}"]
    if len(sets) > 1:
        lines += [f"  {one['url']}{_weight(one['weight'])}: {_describe(one)}" for one in sets]
    return "\n".join(lines)


def _describe(record: dict[str, Any]) -> str:
    counts = f"{record['examples']:,} examples in {record['rows']:,} packed rows, {record['tokens']:,} tokens"
    return counts + counted(record["skipped"], record["warnings"])


def counted(skipped: Mapping[str, int], warnings: Mapping[str, int]) -> str:
    """Format the counts of skipped records and of corrections, to append to a line."""
    text = ""
    for kind, counts in (("skipped", skipped), ("warnings", warnings)):
        if counts:
            text += f"; {kind}: " + ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    return text


def _weight(weight: float | None) -> str:
    return "" if weight is None else f" (weight {weight:g})"


@contextmanager
def prepare_bar(console: Console) -> Iterator[PrepareProgress]:
    """Show a progress bar with rate and remaining time if `console` is a terminal."""
    columns = TextColumn("prepare {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", visible=False)  # stays hidden if everything is prepared already

        def update(examples: int, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=f"{examples:,} examples", visible=True)

        yield update
