"""The records that launcher and pods both read."""

from typing import Annotated

from pydantic import AfterValidator, Field

from cpmbee_job.documents import Document, Number
from cpmbee_job.run.keys import InferenceCommand


def _is_file_name(name: str) -> str:
    if name in ("", ".", "..", "manifest.json") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} can't be one of its files")
    return name


class CheckpointPointer(Document):
    """`LATEST`, and what names a checkpoint elsewhere."""

    step: Number
    attempt: Number


class DeltaPointer(Document):
    """`BEST` and `LAST`; where a delta was fetched, or promoted to, too."""

    prefix: Annotated[str, Field(pattern=r"^delta/([0-9a-f]+(\.[0-9]+)?/)?$")]


class DeltaFile(Document):
    size: Number
    sha256: str


class DeltaManifest(Document):
    files: dict[Annotated[str, AfterValidator(_is_file_name)], DeltaFile]


class AttemptRecord(Document):
    started_unix: float


class ResultRecord(Document):
    state: str
    ended_at: str
    exit_code: Number | None = None


class PreparedSet(Document):
    prepared: str
    rows: Number
    weight: float | None


class PreparedSplit(Document):
    rows: Number
    sets: Annotated[tuple[PreparedSet, ...], Field(min_length=1)]


class DataRecord(Document):
    """As far as others than its writer and training read it."""

    vocabulary: dict[str, Number]
    train: PreparedSplit
    eval: PreparedSplit | None


class InferenceRequest(Document):
    """As far as others than its writer read it."""

    command: InferenceCommand
    model: str
    delta: str | None
    data: str
