"""A delta in the store, as those read it who don't load it: its files, and how well it did on which examples.

A run's folder has deltas, and so has a folder that deltas are promoted to: in both `delta/BEST` names the one that the
folder stands for. Needs no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from cpmbee_job import documents
from cpmbee_job.errors import ConflictError, DamagedError, NotFoundError
from cpmbee_job.run import keys, records
from cpmbee_job.store.base import Store


@dataclass(frozen=True)
class Score:
    """Mean loss over the target tokens of an evaluation set, in nats."""

    loss: float
    source: Literal["training", "evaluation"]
    """Whether the run itself has measured it, or `evaluate --record`."""


class _ScoreRecord(documents.Document):
    loss: float


@dataclass(frozen=True)
class StoredDelta:
    """What a delta's manifest says, and the scores that are known of it."""

    store: Store
    prefix: str
    """Of its folder, with a slash behind it; "" where the store is that folder."""
    text: bytes
    """The manifest as it was written."""
    manifest: dict[str, Any]
    files: dict[str, records.DeltaFile]

    @property
    def url(self) -> str:
        return f"{self.store.url}/{self.prefix}"

    @property
    def run(self) -> str:
        """URL of the run that has trained it."""
        return str(self.manifest.get("run") or "a run that its manifest does not name")

    @property
    def trained_digest(self) -> str | None:
        """Of the examples on which its run has chosen it, where it says so."""
        digest = _part(self.manifest, "scores").get("eval_digest")
        return digest if isinstance(digest, str) else None

    @cached_property
    def scores(self) -> dict[str, Score]:
        """All that are known of it, by eval digest; what `evaluate` has found counts more than what its run says."""
        scores, own = {}, _part(self.manifest, "scores")
        if self.trained_digest is not None and isinstance(own.get("eval_loss"), int | float):
            scores[self.trained_digest] = Score(float(own["eval_loss"]), "training")
        folder = self.prefix + keys.RECORDED_SCORES
        for entry in self.store.list(folder):
            digest = entry.key.removeprefix(folder).removesuffix(".json")
            scores[digest] = Score(_loss(self.store, entry.key), "evaluation")
        return scores


def pointed_delta(store: Store, pointer: str) -> str:
    """The prefix of the delta that BEST or LAST names. Raises `NotFoundError` before there is one."""
    try:
        return records.DeltaPointer.parse(store.get(pointer), f"{store.url}/{pointer}").prefix
    except NotFoundError as error:
        raise NotFoundError(
            f"{store.url}: no delta yet (there is no {pointer})",
            hint="a delta is written at the end, and by every evaluation that is the best so far; "
            "`fetch --what metrics,logs` fetches what there is",
        ) from error


def read_delta(store: Store, prefix: str) -> StoredDelta:
    """The delta in that folder. Raises `NotFoundError` where there is none, `DamagedError` for a manifest that is not
    as it was written."""
    key = prefix + keys.DELTA_MANIFEST
    text = store.get(key)
    files = records.DeltaManifest.parse(text, f"{store.url}/{key}").files
    return StoredDelta(store, prefix, text, documents.from_json(text), files)


def record_score(delta: StoredDelta, eval_digest: str, record: Mapping[str, Any]) -> float:
    """Put what an evaluation has found beside the delta; returns the loss that stands there now: of two evaluations on
    the same examples, the first stays."""
    key = _score_key(delta.prefix, eval_digest)
    try:
        delta.store.put(key, documents.to_json({"eval_digest": eval_digest, **record}), if_none_match=True)
    except ConflictError:
        return _loss(delta.store, key)
    return float(record["loss"])


def copy_scores(delta: StoredDelta, store: Store, prefix: str) -> None:
    """Put what evaluations have found beside the same delta in another folder too."""
    for digest, score in delta.scores.items():
        if score.source == "evaluation":
            data = delta.store.get(_score_key(delta.prefix, digest))
            key = _score_key(prefix, digest)
            if store.info(key) is None:
                store.put(key, data)


def _score_key(prefix: str, eval_digest: str) -> str:
    return f"{prefix}{keys.RECORDED_SCORES}{eval_digest}.json"


def _loss(store: Store, key: str) -> float:
    try:
        return _ScoreRecord.parse(store.get(key), f"{store.url}/{key}").loss
    except DamagedError as error:
        raise DamagedError(f"{error.message}: not the record of an evaluation", hint="delete it") from error


def _part(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = record.get(key)
    return found if isinstance(found, Mapping) else {}
