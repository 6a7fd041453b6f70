"""`evaluate --record`: store scores with the delta that they belong to."""

from typing import Any

from cpmbee_job import documents
from cpmbee_job.cli.shared import console
from cpmbee_job.errors import NotFoundError, RefusedError, UsageError
from cpmbee_job.run import keys
from cpmbee_job.run.deltas import StoredDelta, delta_folder, read_delta, record_score
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store


class _Recordable(documents.Document):
    """The fields that are required to record scores; an older image does not write them."""

    loss: float
    eval_digest: str
    base_digest: str


def parse(results: Store, *, required: bool) -> dict[str, Any]:
    """Read the scores that a pod stored. Raises `DamagedError`, also without the fields to record them."""
    scores = results.get(keys.SCORES)
    (_Recordable if required else documents.Document).parse(scores, f"{results.url}/{keys.SCORES}")
    return documents.from_json(scores)


def find_delta(url: str | None, storage: StorageSpec) -> StoredDelta:
    """Find the delta at `url`. Raises `UsageError` or `NotFoundError` if there is none to store scores with."""
    if url is None:
        raise UsageError("--record requires --delta: scores are stored with a delta")
    folder = delta_folder(url, storage)
    try:
        return read_delta(open_store(folder, storage), "")
    except NotFoundError as error:
        raise NotFoundError(
            f"{url}: contains no delta with a manifest", hint="--record requires a run's folder, or a delta's"
        ) from error


def require_base(delta: StoredDelta, base_digest: str, model: str) -> None:
    """Raises `RefusedError` if the delta was trained on another base model."""
    if delta.manifest.get("base_digest") != base_digest:
        raise RefusedError(f"--record: {delta.url} was trained on other weights than those of {model}")


def record(delta: StoredDelta, report: dict[str, Any]) -> None:
    """Store the scores, unless scores on the same examples exist; say which apply."""
    require_base(delta, report["base_digest"], report["model"])
    digest = report["eval_digest"]
    stored = record_score(delta, digest, report)
    if stored != report["loss"]:
        console.warn(f"{delta.url} already has a score on these examples, which is kept: loss {stored:.6f}")
    else:
        console.say(f"stored with {delta.url}: eval digest {digest}")
