"""All runs at a glance: the cluster's by their PyTorchJobs alone, the store's by one folder listing and small reads."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field

from cpmbee_job import documents
from cpmbee_job.errors import ClusterError, CpmbeeError, NotFoundError
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.fields import condition, integer, is_true, number, text, time_at
from cpmbee_job.launch.kube.protocol import PYTORCHJOBS, Cluster, Object
from cpmbee_job.launch.runs.find import job_labels, job_url
from cpmbee_job.launch.runs.jobs import is_queued, is_suspended, num_workers
from cpmbee_job.launch.runs.status import FRESH, Phase
from cpmbee_job.run import keys
from cpmbee_job.spec import StorageSpec, parse_spec
from cpmbee_job.spec.types import RESERVED_NAMES
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store

READERS = 16
"""Runs of the store that are read at the same time."""


class RunEntry(BaseModel):
    """One run of `cpmbee-job list --json`. Times are in RFC 3339, UTC."""

    model_config = ConfigDict(frozen=True)

    name: str
    run_id: str
    url: str
    phase: Phase = Field(description="As of `status`; of a run that only the cluster knows, what its PyTorchJob says.")
    reason: str | None = Field(description="Why it has ended.")
    workers: int | None = Field(description="Pods asked for; null where its PyTorchJob is gone.")
    step: int | None = Field(description="null unless the store was asked (--output).")
    total_steps: int | None
    loss: float | None
    created_at: str | None = Field(description="When its PyTorchJob was made; null where there is none (any more).")
    updated_at: str | None = Field(description="Its last sign of life; null unless the store was asked.")
    ended_at: str | None


class Listing(BaseModel):
    """What `cpmbee-job list --json` prints."""

    model_config = ConfigDict(frozen=True)

    runs: tuple[RunEntry, ...] = Field(description="Newest first.")
    total: int = Field(description="How many there are, with those that --limit leaves out.")
    notes: tuple[str, ...] = Field(description="What could not be looked at.")


def list_runs(
    cluster: Cluster | None, *, output: str | None = None, storage: StorageSpec | None = None, limit: int | None = None
) -> Listing:
    """The runs of the cluster's namespace and, with `output`, those under it in the store."""
    notes: list[str] = []
    entries: dict[str, RunEntry] = {}
    cluster_known = cluster is not None
    try:
        for job in cluster.list(PYTORCHJOBS, naming.MANAGED_BY) if cluster is not None else ():
            entry = of_job(job)
            entries[entry.url or f"{entry.name}/{entry.run_id}"] = entry
    except CpmbeeError as error:
        cluster_known = False
        if isinstance(error, NotFoundError):
            error = ClusterError("it knows no PyTorchJobs: the training operator is not installed", hint="see `doctor`")
        if output is None:
            raise error from None
        notes.append(f"the cluster: {error.message}")
    if output is not None:
        try:
            store = open_store(output, (storage or StorageSpec()).seen_by_launcher())
            namespace = cluster.namespace if cluster is not None and cluster_known else None
            entries |= _of_store(store, entries, notes, namespace)
        except CpmbeeError as error:
            if not cluster_known:
                raise
            notes.append(f"the store: {error.message}")
    newest_first = sorted(entries.values(), key=_age_key, reverse=True)
    return Listing(runs=tuple(newest_first[:limit]), total=len(newest_first), notes=tuple(notes))


def last_succeeded(output: str, name: str, storage: StorageSpec) -> str | None:
    """Id of the job's run that has succeeded last, as far as the store knows."""
    store = open_store(f"{output.rstrip('/')}/{name}", storage)

    def end(run_id: str) -> tuple[str, str] | None:
        with suppress(ValueError):  # what can't be read has not succeeded
            result = _read(store, f"{run_id}/{keys.RESULT}")
            if text(result, "state") == "succeeded":
                return text(result, "ended_at"), run_id
        return None

    with ThreadPoolExecutor(READERS) as threads:
        ends = [found for found in threads.map(end, store.folders()) if found is not None]
    return max(ends)[1] if ends else None


def of_job(job: Object) -> RunEntry:
    """What the PyTorchJob alone says."""
    name, run_id = job_labels(job)
    phase: Phase = "pending"
    reason = ""
    if is_true(job, "Failed"):
        phase, reason = "failed", text(condition(job, "Failed"), "message")
    elif is_true(job, "Succeeded"):
        phase = "succeeded"
    elif is_suspended(job):
        phase = "queued" if is_queued(job) else "pending"
    elif is_true(job, "Running"):
        phase = "running"
    return RunEntry(
        name=name,
        run_id=run_id,
        url=job_url(job).rstrip("/"),
        phase=phase,
        reason=reason or None,
        workers=num_workers(job)[1],
        step=None,
        total_steps=None,
        loss=None,
        created_at=text(job, "metadata", "creationTimestamp") or None,
        updated_at=None,
        ended_at=text(job, "status", "completionTime") or None,
    )


def _of_store(
    store: Store, known: Mapping[str, RunEntry], notes: list[str], namespace: str | None
) -> dict[str, RunEntry]:
    """By URL, with what the cluster knows of them. `namespace`: where it was asked, None where it was not."""

    def ids(name: str) -> list[tuple[str, str]]:
        return [(name, run_id) for run_id in store.folders(name)]

    def read(place: tuple[str, str]) -> RunEntry | None:
        url = keys.run_url(store.url, *place)
        try:
            return _stored(store, *place, known.get(url), namespace)
        except (CpmbeeError, ValueError) as error:
            notes.append(f"{'/'.join(place)}: {error}")
            return known.get(url)

    with ThreadPoolExecutor(READERS) as threads:
        names = [name for name in store.folders() if name not in RESERVED_NAMES]
        places = [place for found in threads.map(ids, names) for place in found]
        return {entry.url: entry for entry in threads.map(read, places) if entry is not None}


def _stored(store: Store, name: str, run_id: str, known: RunEntry | None, namespace: str | None) -> RunEntry | None:
    """None where that folder is no run."""
    result, beat = (_read(store, f"{name}/{run_id}/{key}") for key in (keys.RESULT, keys.STATUS))
    if not result and not beat and store.info(f"{name}/{run_id}/{keys.SPEC}") is None:
        return known
    phase: Phase = known.phase if known else "lost"
    reason = known.reason if known else None
    if result:
        state = text(result, "state")
        phase = state if state in ("succeeded", "cancelled") else "failed"  # type: ignore[assignment]
        reason = text(result, "reason") or None
    elif known is None and _is_fresh(beat):
        phase = "running"
    elif known is None and namespace is None:
        reason = "the cluster was not asked"
    elif known is None and (home := _home(store, f"{name}/{run_id}")) not in (None, namespace):
        reason = f"not asked: it was submitted to the namespace {home}"
    return RunEntry(
        name=name,
        run_id=run_id,
        url=keys.run_url(store.url, name, run_id),
        phase=phase,
        reason=reason,
        workers=known.workers if known else None,
        step=integer(result, "steps") or integer(beat, "step"),
        total_steps=integer(beat, "total_steps"),
        loss=number(beat, "loss"),
        created_at=known.created_at if known else None,
        updated_at=text(beat, "updated_at") or None,
        ended_at=text(result, "ended_at") or (known.ended_at if known else None),
    )


def _read(store: Store, key: str) -> Object:
    """The JSON object, an empty one where there is none."""
    try:
        return documents.from_json(store.get(key))
    except NotFoundError:
        return {}


def _home(store: Store, run: str) -> str | None:
    """The namespace that the run was submitted to, as far as that is known."""
    key = f"{run}/{keys.SPEC}"
    with suppress(CpmbeeError):  # of a newer launcher, say
        return parse_spec(store.get(key), source=f"{store.url}/{key}").cluster.namespace
    return None


def _is_fresh(beat: Object) -> bool:
    at = time_at(beat, "updated_at")
    fresh = at is not None and (datetime.now(UTC) - at).total_seconds() < FRESH
    return fresh and text(beat, "state") == "running"


def _age_key(entry: RunEntry) -> tuple[str, str, str]:
    return entry.created_at or entry.updated_at or entry.ended_at or "", entry.name, entry.run_id
