"""The preprocess init-step of a job: both splits prepared, and the run bound to them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cpmbee_job.data.dataset.index import Index
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.parts import PrepareSettings
from cpmbee_job.data.prepare.prepare import PrepareProgress, no_prepare_progress, prepare_split
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
    """Prepare the job's data sets, or find them prepared; returns what the run gets bound to (`Run.bind_data`).

    The vocabulary is the model folder's, unless it is given.
    """
    vocab = vocab or read_vocabulary(spec.model, storage)
    tokenizer = Tokenizer.from_bytes(vocab, source=f"{spec.model}/{VOCABULARY}")

    def prepared(sets: Iterable[DataSetSpec]) -> dict[str, Any]:
        found = []
        for one in sets:
            folder, index = prepare_split(
                one.path,
                vocab,
                _settings(spec, one),
                spec.output,
                storage=storage,
                workers=num_cpus(),
                pod_index=pod_index,
                num_pods=num_pods,
                progress=progress,
            )
            found.append(_summary(one, folder, index))
        return _totals(found)

    return {
        "vocabulary": {"size": tokenizer.vocab_size, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id},
        "train": prepared(spec.data.train_sets),
        "eval": None if spec.data.eval is None else prepared([DataSetSpec(path=spec.data.eval)]),
    }


def _settings(spec: JobSpec, one: DataSetSpec) -> PrepareSettings:
    return PrepareSettings(
        max_length=spec.train.max_length,
        format=one.format or spec.data.format,
        on_error=spec.data.on_error,
        too_long=spec.data.too_long,
        strict=spec.data.strict,
        in_context=one.in_context,
    )


def read_vocabulary(model: str, storage: StorageSpec) -> bytes:
    """The `vocab.txt` of a model folder."""
    try:
        return open_store(model, storage).get(VOCABULARY)
    except NotFoundError as error:
        raise ModelError(
            f"{model}: no {VOCABULARY} in it", hint="`model` names a folder with vocab.txt, config.json and weights"
        ) from error


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
    """A split's record: its data sets, and what they hold together."""
    sums = {name: sum(one[name] for one in sets) for name in _COUNTS}
    counters = {name: dict(sum((Counter(one[name]) for one in sets), Counter())) for name in _COUNTERS}
    return {**sums, **counters, "sets": sets}


def describe(split: str, record: dict[str, Any]) -> str:
    """A line about a prepared split, and one for each of several data sets."""
    sets = record["sets"]
    lines = [f"{split}: {_describe(record)}"]
    if len(sets) > 1:
        lines += [f"  {one['url']}{_weight(one['weight'])}: {_describe(one)}" for one in sets]
    return "\n".join(lines)


def _describe(record: dict[str, Any]) -> str:
    words = f"{record['examples']:,} examples in {record['rows']:,} rows, {record['tokens']:,} tokens"
    return words + counted(record["skipped"], record["warnings"])


def counted(skipped: Mapping[str, int], warnings: Mapping[str, int]) -> str:
    """What was left out and what was mended, to be put behind what is there."""
    words = ""
    for kind, counts in (("skipped", skipped), ("warnings", warnings)):
        if counts:
            words += f"; {kind}: " + ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    return words


def _weight(weight: float | None) -> str:
    return "" if weight is None else f" (weight {weight:g})"


@contextmanager
def prepare_bar(console: Console) -> Iterator[PrepareProgress]:
    """A progress bar with rate and remaining time where `console` is a terminal."""
    columns = TextColumn("prepare {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", visible=False)  # what is prepared already has nothing to show

        def moved(examples: int, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=f"{examples:,} examples", visible=True)

        yield moved
