"""The index of a prepared data set: what its parts are and hold. It is written last, so a set with one is complete."""

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
"""Of the index and of the parts; a reader refuses any other."""

Kind = Literal["rows", "examples"]
"""`rows`: encoded and packed; `examples`: checked, as JSON text."""


class UnknownVersionError(DataError):
    """A data set that another release prepared."""


@dataclass(frozen=True)
class PartInfo:
    """One part, and what the input's piece that it was made of held. Also a document of its own beside the part, so
    that whoever finds all parts done can write the index.
    """

    key: str
    sha256: str
    size: documents.Number
    rows: documents.Number
    examples: documents.Number
    tokens: documents.Number
    target_tokens: documents.Number
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Rows of the input that were left out, by reason."""
    warnings: Mapping[str, int] = field(default_factory=dict)
    """What was mended on the way, by kind."""


PART = TypeAdapter(PartInfo)


@dataclass(frozen=True)
class Index:
    """A complete data set."""

    digest: str
    """Of everything that decides the content: the input's listing, the vocabulary, the settings."""
    kind: Kind
    settings: Mapping[str, Any]
    vocab: str | None
    """Digest of the vocabulary."""
    source: str
    """The data URL; it takes no part in the digest."""
    listing: str
    """Digest of the input's listing."""
    parts: tuple[PartInfo, ...]
    ignored: tuple[str, ...] = ()
    """Objects in the input's folder that do not look like data."""

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
        """Tokens that the rows have room for."""
        return self.rows * int(self.settings.get("max_length") or 0)

    @cached_property
    def skipped(self) -> dict[str, int]:
        return _sum(part.skipped for part in self.parts)

    @cached_property
    def warnings(self) -> dict[str, int]:
        return _sum(part.warnings for part in self.parts)

    @property
    def content_digest(self) -> str:
        """Of the parts' own hashes: equal for equal examples in equal rows, wherever they came from."""
        return documents.digest([part.sha256 for part in self.parts])

    def to_json(self) -> bytes:
        totals = {
            "rows": self.rows,
            "examples": self.examples,
            "tokens": self.tokens,
            "target_tokens": self.target_tokens,
            "capacity": self.capacity,
        }
        counts = {"totals": totals, "skipped": self.skipped, "warnings": self.warnings}
        return documents.to_json({"version": VERSION, **asdict(self), **counts})

    @classmethod
    def from_json(cls, data: bytes, source: str) -> Self:
        """Raises `DataError`, naming `source`, for what is no index, or one of another version."""
        try:
            document = documents.from_json(data)
            if "version" not in document:
                raise ValueError("it has no version")
            version = document["version"]
            if version != VERSION:
                raise UnknownVersionError(
                    f"{source}: format version {version}, this release reads {VERSION}",
                    hint="prepare the data again with this release, or train with the one that prepared it",
                )
            index = TypeAdapter(cls).validate_json(data, strict=True)
            if type(index.settings.get("max_length")) not in (int, type(None)):
                raise ValueError("settings.max_length is no number")
            return index
        except ValueError as error:
            raise DataError(f"{source}: not an index of prepared data ({documents.problem(error)})") from error


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
