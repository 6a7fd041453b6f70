"""Deltas as objects: locate, read, verify, prune, and the scores recorded beside them. Needs no torch. A run's folder
contains deltas, and so does a folder to which deltas are promoted. In both, `delta/BEST` names the best."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from cpmbee_job import documents
from cpmbee_job.errors import ConflictError, DamagedError, NotFoundError
from cpmbee_job.run import keys
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import Store, get_verified
from cpmbee_job.store.urls import open_store

DELTA_SUFFIXES = (".pt", ".bin", ".safetensors")
"""File names of a delta outside its folder."""


def _is_file_name(name: str) -> str:
    if name in ("", ".", "..", keys.DELTA_MANIFEST) or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is not a valid name for a file of a delta")
    return name


class DeltaFile(documents.Document):
    size: documents.Number
    sha256: str


class DeltaManifest(documents.Document):
    files: dict[Annotated[str, AfterValidator(_is_file_name)], DeltaFile]


class DeltaPointer(documents.Document):
    """`BEST` and `LAST` of a run; `BEST` also of a fetched delta and of promoted deltas."""

    prefix: Annotated[str, Field(pattern=r"^delta/([0-9a-f]+(\.[0-9]+)?/)?$")]


class _ScoreRecord(documents.Document):
    loss: float


@dataclass(frozen=True)
class EvalScore:
    """Mean loss over the target tokens of an evaluation set, in nats."""

    loss: float
    source: Literal["training", "evaluation"]
    """Measured by the run itself, or by `evaluate --record`."""


@dataclass(frozen=True)
class StoredDelta:
    """A delta's manifest, and its known scores."""

    store: Store
    prefix: str
    """Of its folder, with a trailing slash; "" if the store is that folder."""
    text: bytes
    """The manifest as it was written."""
    manifest: dict[str, Any]
    files: dict[str, DeltaFile]

    @property
    def url(self) -> str:
        return f"{self.store.url}/{self.prefix}"

    @property
    def run(self) -> str:
        """URL of the run that trained it."""
        return str(self.manifest.get("run") or "an unknown run")

    @property
    def trained_digest(self) -> str | None:
        """Digest of the examples on which its run selected it, if the manifest contains one."""
        digest = _mapping(self.manifest, "scores").get("eval_digest")
        return digest if isinstance(digest, str) else None

    @cached_property
    def scores(self) -> dict[str, EvalScore]:
        """All known scores by eval digest; a score of `evaluate --record` replaces the run's own."""
        scores, own = {}, _mapping(self.manifest, "scores")
        if self.trained_digest is not None and isinstance(own.get("eval_loss"), int | float):
            scores[self.trained_digest] = EvalScore(float(own["eval_loss"]), "training")
        folder = self.prefix + keys.RECORDED_SCORES
        for entry in self.store.list(folder):
            digest = entry.key.removeprefix(folder).removesuffix(".json")
            scores[digest] = EvalScore(_loss(self.store, entry.key), "evaluation")
        return scores


def read_delta(store: Store, prefix: str) -> StoredDelta:
    """Read the delta in that folder. Raises `NotFoundError`, or `DamagedError` for a corrupt manifest."""
    key = prefix + keys.DELTA_MANIFEST
    text = store.get(key)
    files = DeltaManifest.parse(text, f"{store.url}/{key}").files
    return StoredDelta(store, prefix, text, documents.from_json(text), files)


def read_delta_pointer(store: Store, key: str) -> str:
    """Return the prefix of the delta that `BEST` or `LAST` names. Raises `NotFoundError`, `DamagedError`."""
    return read_delta_pointer_with_etag(store, key)[0]


def read_delta_pointer_with_etag(store: Store, key: str) -> tuple[str, str]:
    """Return the prefix, and the pointer's ETag for `replace_pointer`."""
    try:
        data, etag = store.get_with_etag(key)
    except NotFoundError as error:
        raise NotFoundError(
            f"{store.url}: no delta yet ({key} does not exist)",
            hint="a delta is written by every evaluation with a new best loss, and at the end of training; "
            "`fetch --what metrics,logs` fetches what exists",
        ) from error
    return DeltaPointer.parse(data, f"{store.url}/{key}").prefix, etag


def best_prefix(store: Store) -> str:
    """Return the prefix of the best delta of a run's folder; "" if the folder is a delta itself, or has none. Raises
    `DamagedError` for a corrupt pointer."""
    if any(store.info(name) is not None for name in (keys.DELTA_MANIFEST, keys.DELTA_TENSORS)):
        return ""
    with suppress(NotFoundError):
        return read_delta_pointer(store, keys.BEST)
    return ""


def delta_folder(url: str, storage: StorageSpec | None = None) -> str:
    """Return the URL of the delta folder: `url` itself, or the best delta of the run's folder at `url`."""
    store = open_store(url, storage)
    prefix = best_prefix(store)
    return f"{store.url}/{prefix}" if prefix else url


def check_delta(store: Store, prefix: str) -> None:
    """Verify all files of a delta. Raises `DamagedError`, `NotFoundError`."""
    for name, file in read_delta(store, prefix).files.items():
        get_verified(store, prefix + name, file.size, file.sha256)


def upload_delta(store: Store, prefix: str, folder: Path) -> None:
    """Upload the files of a delta folder, the manifest last."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == keys.DELTA_MANIFEST, path.name)):
        store.upload(path, prefix + path.name)


@dataclass(frozen=True, order=True)
class DeltaFolder:
    """The folder of a delta in a run, with or without a manifest."""

    step: int
    attempt: int

    @property
    def prefix(self) -> str:
        return keys.delta_prefix(self.step, self.attempt)

    @property
    def manifest_key(self) -> str:
        return self.prefix + keys.DELTA_MANIFEST


def delta_folders(object_keys: Iterable[str]) -> list[DeltaFolder]:
    """Return the delta folders in which these objects lie, the last step first."""
    matches = (re.match(r"delta/(\d+)\.(\d+)/", key) for key in object_keys)
    return sorted({DeltaFolder(int(match[1]), int(match[2])) for match in matches if match}, reverse=True)


def pointed_deltas(store: Store) -> set[str]:
    """Return the prefixes that BEST and LAST name. Raises `DamagedError` for a corrupt pointer."""
    found = set()
    for key in (keys.BEST, keys.LAST):
        with suppress(NotFoundError):
            found.add(read_delta_pointer(store, key))
    return found


def prune_deltas(store: Store, keep: int, attempt: int) -> None:
    """Delete the deltas of this and older attempts, except the newest `keep` and those that BEST and LAST name."""
    folders = delta_folders(entry.key for entry in store.list("delta/"))
    pointed = pointed_deltas(store)
    for folder in folders[keep:]:
        if folder.prefix not in pointed and folder.attempt <= attempt:
            for entry in sorted(store.list(folder.prefix), key=lambda entry: entry.key != folder.manifest_key):
                store.delete(entry.key)


def record_score(delta: StoredDelta, eval_digest: str, record: Mapping[str, Any]) -> float:
    """Store the result of an evaluation beside the delta. Returns the stored loss: of two evaluations on the same
    examples, the first is kept."""
    key = _score_key(delta.prefix, eval_digest)
    try:
        delta.store.put(key, documents.to_json({"eval_digest": eval_digest, **record}), if_none_match=True)
    except ConflictError:
        return _loss(delta.store, key)
    return float(record["loss"])


def copy_scores(delta: StoredDelta, store: Store, prefix: str) -> None:
    """Copy the recorded evaluations to another folder with the same delta."""
    for digest, score in delta.scores.items():
        key = _score_key(prefix, digest)
        if score.source == "evaluation" and store.info(key) is None:
            store.put(key, delta.store.get(_score_key(delta.prefix, digest)))


def _score_key(prefix: str, eval_digest: str) -> str:
    return f"{prefix}{keys.RECORDED_SCORES}{eval_digest}.json"


def _loss(store: Store, key: str) -> float:
    try:
        return _ScoreRecord.parse(store.get(key), f"{store.url}/{key}").loss
    except DamagedError as error:
        raise DamagedError(f"{error.message}: not the record of an evaluation", hint="delete it") from error


def _mapping(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = document.get(key)
    return found if isinstance(found, Mapping) else {}
