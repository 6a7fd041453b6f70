"""Prepare a dataset: fixed pieces, a deterministic shard for each, the index last.

Each shard has a small document beside it, written after it, with its hash and counts. A process skips pieces whose
document exists and writes the index once all documents exist. So any number of processes and pods can work on one
dataset without coordination, and the next run completes what a killed one left.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cpmbee_job import documents
from cpmbee_job.data.dataset.index import INDEX, VERSION, Index, ShardInfo, UnknownVersionError
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.shard_maker import PrepareSettings, ShardMaker
from cpmbee_job.data.prepare.workers import make_shards
from cpmbee_job.data.read.formats import converter
from cpmbee_job.data.read.sources import DataSource
from cpmbee_job.errors import DataError, NotFoundError
from cpmbee_job.run import keys
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import Store, file_sha256
from cpmbee_job.store.urls import open_store

PrepareProgress = Callable[[int, int, int], None]
"""Called with the examples done, the bytes of input done, and the bytes of input in total."""


def no_prepare_progress(_examples: int, _bytes_done: int, _bytes_total: int) -> None:
    """The null `PrepareProgress`."""


@dataclass(frozen=True)
class Preparation:
    """What to prepare, and how the work is shared."""

    source: DataSource
    settings: PrepareSettings
    tokenizer: Tokenizer | None
    """Required for packed rows (`settings.max_length`)."""
    storage: StorageSpec | None = None
    workers: int = 1
    """Processes of this pod."""
    pod_index: int = 0
    num_pods: int = 1
    """Pods that prepare the same dataset; they start at different pieces."""
    shard_prefix: str = "part"
    progress: PrepareProgress = no_prepare_progress

    @cached_property
    def digest(self) -> str:
        """Digest of everything that decides the shards: equal digests, equal shards."""
        return documents.digest(
            {
                "version": VERSION,
                "kind": self.source.kind,
                "listing": self.source.digest,
                "piece_bytes": self.source.piece_bytes,
                "vocab": self.vocab_digest,
                "settings": self.settings.to_json(),
                "format": _format_digest(self.settings.format),
            }
        )

    @property
    def vocab_digest(self) -> str | None:
        return None if self.tokenizer is None else self.tokenizer.digest

    def shard_maker(self, output_url: str) -> ShardMaker:
        return ShardMaker(
            kind=self.source.kind,
            input_url=self.source.store.url,
            output_url=output_url,
            storage=self.storage,
            settings=self.settings,
            tokenizer=self.tokenizer,
            digest=self.digest,
            prefix=self.shard_prefix,
            window=self.source.piece_bytes,
        )


def prepare(preparation: Preparation, out: Store) -> Index:
    """Encode and pack the source into the folder `out`; returns at once if that has been done.

    Raises `DataError` naming file, line and reason for records that the settings do not allow, and for a source without
    examples. No index is written then.
    """
    found = _find_index(out)
    if isinstance(found, Index) and found.digest == preparation.digest:
        return found
    if found is not None:
        out.delete(INDEX)  # before any shard is replaced: an index must never list shards of another digest
    source, settings = preparation.source, preparation.settings
    index = Index(
        digest=preparation.digest,
        kind="examples" if settings.max_length is None else "rows",
        settings=settings.to_json(),
        vocab=preparation.vocab_digest,
        source=source.url,
        listing=source.digest,
        parts=_all_shards(preparation, out),
        ignored=source.ignored,
    )
    if not index.examples:
        skipped = ", ".join(f"{count} {reason}" for reason, count in index.skipped.items())
        raise DataError(f"{source.url}: no examples{skipped and f'; skipped: {skipped}'}")
    out.put(INDEX, index.to_json())
    return index


def prepare_below(preparation: Preparation, output: str) -> tuple[str, Index]:
    """Prepare into the dataset's own folder below `output`. Returns the folder's URL and the index."""
    folder = keys.prepared_url(output, preparation.digest)
    return folder, prepare(preparation, open_store(folder, preparation.storage))


def _all_shards(preparation: Preparation, out: Store) -> tuple[ShardInfo, ...]:
    source = preparation.source
    first = preparation.pod_index * len(source.pieces) // preparation.num_pods
    pieces = [*source.pieces[first:], *source.pieces[:first]]
    shards: dict[int, ShardInfo] = {}
    examples = bytes_done = 0

    def on_bytes(num_bytes: int) -> None:
        preparation.progress(examples, min(bytes_done + num_bytes, source.num_bytes), source.num_bytes)

    for number, shard in make_shards(preparation.shard_maker(out.url), pieces, preparation.workers, on_bytes):
        shards[number] = shard
        examples += shard.examples
        bytes_done += source.pieces[number].num_bytes
        on_bytes(0)
    return tuple(shards[number] for number in sorted(shards))


def _find_index(store: Store) -> Index | UnknownVersionError | None:
    try:
        return Index.from_json(store.get(INDEX), f"{store.url}/{INDEX}")
    except NotFoundError:
        return None
    except UnknownVersionError as error:
        return error


def _format_digest(format_name: str) -> str | None:
    """Hash the file of a user's format: another function makes other examples."""
    converter(format_name)  # imports it
    module = sys.modules.get(format_name.partition(":")[0])
    path = getattr(module, "__file__", None)
    return None if path is None else file_sha256(Path(path))
