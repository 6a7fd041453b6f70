"""The index of a prepared dataset: its shards and their counts. It is written last, so its presence means complete."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import TypeAdapter

from cpmbee_job import documents
from cpmbee_job.errors import DataError

INDEX = "index.json"
VERSION = 1
"""Format version of the index and the shards; a reader rejects any other."""

DatasetKind = Literal["rows", "examples"]
"""`rows`: encoded examples in packed rows. `examples`: validated examples as JSON text."""


class UnknownVersionError(DataError):
    """A dataset that another release prepared."""


@dataclass(frozen=True)
class ShardInfo:
    """A shard, and the counts of the input piece it was made from. Also stored as a document beside the shard, so that
    any process that finds all shards complete can write the index.
    """

    key: str
    sha256: str
    size: documents.Number
    rows: documents.Number
    examples: documents.Number
    tokens: documents.Number
    target_tokens: documents.Number
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Skipped records by reason."""
    warnings: Mapping[str, int] = field(default_factory=dict)
    """Automatic corrections by kind."""


SHARD_INFO = TypeAdapter(ShardInfo)


@dataclass(frozen=True)
class Index:
    """A complete dataset."""

    digest: str
    """Digest of everything that decides the content: the input's listing, the vocabulary, the settings."""
    kind: DatasetKind
    settings: Mapping[str, Any]
    vocab: str | None
    """SHA-256 of the vocabulary."""
    source: str
    """The data URL; not part of the digest."""
    listing: str
    """Digest of the input's listing."""
    parts: tuple[ShardInfo, ...]
    """The shards."""
    ignored: tuple[str, ...] = ()
    """Objects in the input folder whose names do not look like data."""

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def examples(self) -> int:
        return sum(part.examples for part in self.parts)

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    @property
    def target_tokens(self) -> int:
        return sum(part.target_tokens for part in self.parts)

    @property
    def capacity(self) -> int:
        """Number of tokens that fit into the packed rows."""
        return self.rows * int(self.settings.get("max_length") or 0)

    @cached_property
    def skipped(self) -> dict[str, int]:
        return sum_counts(part.skipped for part in self.parts)

    @cached_property
    def warnings(self) -> dict[str, int]:
        return sum_counts(part.warnings for part in self.parts)

    @property
    def content_digest(self) -> str:
        """Digest of the shards' hashes: equal for equal examples in equal rows, whatever their source."""
        return documents.digest([part.sha256 for part in self.parts])

    def to_json(self) -> bytes:
        totals = {name: getattr(self, name) for name in ("rows", "examples", "tokens", "target_tokens", "capacity")}
        counts = {"totals": totals, "skipped": self.skipped, "warnings": self.warnings}
        return documents.to_json({"version": VERSION, **asdict(self), **counts})

    @classmethod
    def from_json(cls, data: bytes, source: str) -> Self:
        """Parse an index. Raises `DataError` naming `source` if it is invalid, `UnknownVersionError` for another
        version.
        """
        try:
            document = documents.from_json(data)
            if "version" not in document:
                raise ValueError("version: missing")
            version = document["version"]
            if version != VERSION:
                raise UnknownVersionError(
                    f"{source}: format version {version}, but this release reads version {VERSION}",
                    hint="prepare the data again with this release, or train with the release that prepared it",
                )
            index = TypeAdapter(cls).validate_json(data, strict=True)
            if type(index.settings.get("max_length")) not in (int, type(None)):
                raise ValueError("settings.max_length: must be an integer")
            return index
        except ValueError as error:
            raise DataError(f"{source}: not an index of prepared data ({documents.problem(error)})") from error


def sum_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up counts by name, sorted by name."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
