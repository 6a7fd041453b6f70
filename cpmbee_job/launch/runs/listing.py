"""List all runs: those of the cluster from their PyTorchJobs alone, those of the object store by small reads."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field

from cpmbee_job import documents
from cpmbee_job.errors import ClusterError, CpmbeeError, NotFoundError
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.fields import condition, integer, number, text_at
from cpmbee_job.launch.kube.protocol import PYTORCHJOBS, Cluster, Object
from cpmbee_job.launch.runs.find import job_labels, job_url
from cpmbee_job.launch.runs.jobs import num_workers
from cpmbee_job.launch.runs.phases import Phase, is_alive, job_phase, result_phase
from cpmbee_job.run import keys
from cpmbee_job.spec import StorageSpec, parse_spec
from cpmbee_job.spec.types import RESERVED_NAMES
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store

READERS = 16
"""Runs in the object store that are read at the same time."""


class RunEntry(BaseModel):
    """One run of `cpmbee-job list --json`. Times are in RFC 3339, UTC."""

    model_config = ConfigDict(frozen=True)

    name: str
    run_id: str
    url: str
    phase: Phase = Field(description="As in `status`; of a run that was only found in the cluster, its PyTorchJob's.")
    reason: str | None = Field(description="Why the run has ended.")
    workers: int | None = Field(description="Pods requested; null if there is no PyTorchJob.")
    step: int | None = Field(description="null unless the object store was read (--output).")
    total_steps: int | None
    loss: float | None
    created_at: str | None = Field(description="When the PyTorchJob was created; null if there is none.")
    updated_at: str | None = Field(description="Last heartbeat; null unless the object store was read.")
    ended_at: str | None


class Listing(BaseModel):
    """What `cpmbee-job list --json` prints."""

    model_config = ConfigDict(frozen=True)

    runs: tuple[RunEntry, ...] = Field(description="Newest first.")
    total: int = Field(description="Number of runs, including those that --limit omits.")
    notes: tuple[str, ...] = Field(description="What could not be read.")


def list_runs(
    cluster: Cluster | None, *, output: str | None = None, storage: StorageSpec | None = None, limit: int | None = None
) -> Listing:
    """List the runs of the cluster's namespace and, with `output`, those under it in the object store.

    What cannot be read becomes a note if the other source can be read, else an error.
    """
    notes: list[str] = []
    jobs: dict[str, Object] = {}
    namespace = None if cluster is None else cluster.namespace
    try:
        for job in cluster.list(PYTORCHJOBS, naming.MANAGED_BY) if cluster is not None else ():
            jobs[job_url(job).rstrip("/") or "/".join(job_labels(job))] = job
    except CpmbeeError as error:
        namespace = None
        if isinstance(error, NotFoundError):
            error = ClusterError("it has no PyTorchJobs: the training operator is not installed", hint="see `doctor`")
        if output is None:
            raise error from None
        notes.append(f"the cluster: {error.message}")
    entries = {key: of_job(job) for key, job in jobs.items()}
    if output is not None:
        try:
            store = open_store(output, (storage or StorageSpec()).seen_by_launcher())
            entries |= _StoreReader(store, namespace, jobs, notes).read()
        except CpmbeeError as error:
            if namespace is None:
                raise
            notes.append(f"the store: {error.message}")
    newest_first = sorted(entries.values(), key=_last_change, reverse=True)
    return Listing(runs=tuple(newest_first[:limit]), total=len(newest_first), notes=tuple(notes))


def last_succeeded(output: str, name: str, storage: StorageSpec) -> str | None:
    """Return the id of the last run of the job `name` that succeeded, None if no result in the object store is one."""
    store = open_store(f"{output.rstrip('/')}/{name}", storage)

    def end(run_id: str) -> tuple[str, str] | None:
        with suppress(ValueError):  # a damaged result is no success
            result = _read(store, f"{run_id}/{keys.RESULT}")
            if text_at(result, "state") == "succeeded":
                return text_at(result, "ended_at"), run_id
        return None

    with ThreadPoolExecutor(READERS) as threads:
        ends = [found for found in threads.map(end, store.folders()) if found is not None]
    return max(ends)[1] if ends else None


def of_job(job: Object) -> RunEntry:
    """Describe a run by its PyTorchJob alone."""
    return _describe(*job_labels(job), job_url(job).rstrip("/"), job)


def _describe(
    name: str, run_id: str, url: str, job: Object | None, result: Object | None = None, heartbeat: Object | None = None
) -> RunEntry:
    phase: Phase = "lost"
    if result:
        phase = result_phase(result)
    elif job is not None:
        phase = job_phase(job)
    elif is_alive(heartbeat or {}, datetime.now(UTC)):
        phase = "running"
    failed = condition(job, "Failed") if phase == "failed" else {}
    return RunEntry(
        name=name,
        run_id=run_id,
        url=url,
        phase=phase,
        reason=(text_at(result, "reason") if result else text_at(failed, "message")) or None,
        workers=None if job is None else num_workers(job)[1],
        step=integer(result, "steps") or integer(heartbeat, "step"),
        total_steps=integer(heartbeat, "total_steps"),
        loss=number(heartbeat, "loss"),
        created_at=text_at(job, "metadata", "creationTimestamp") or None,
        updated_at=text_at(heartbeat, "updated_at") or None,
        ended_at=text_at(result, "ended_at") or text_at(job, "status", "completionTime") or None,
    )


class _StoreReader:
    """Reads the runs in `store`. `namespace`: the one whose PyTorchJobs are `jobs`, by the URL of their run; None if
    the cluster was not read."""

    def __init__(self, store: Store, namespace: str | None, jobs: Mapping[str, Object], notes: list[str]) -> None:
        self._store, self._namespace, self._jobs, self._notes = store, namespace, jobs, notes

    def read(self) -> dict[str, RunEntry]:
        """Return the entries by URL."""
        with ThreadPoolExecutor(READERS) as threads:
            names = [name for name in self._store.folders() if name not in RESERVED_NAMES]
            folders = zip(names, threads.map(self._store.folders, names), strict=True)
            runs = [(name, run_id) for name, ids in folders for run_id in ids]
            return {entry.url: entry for entry in threads.map(self._read_entry, runs) if entry is not None}

    def _read_entry(self, run: tuple[str, str]) -> RunEntry | None:
        """Describe the run with what the cluster shows of it; return None if the folder is not a run."""
        url, folder = keys.run_url(self._store.url, *run), "/".join(run)
        job = self._jobs.get(url)
        known = None if job is None else of_job(job)
        try:
            result, heartbeat = (_read(self._store, f"{folder}/{key}") for key in (keys.RESULT, keys.STATUS))
            if not result and not heartbeat and self._store.info(f"{folder}/{keys.SPEC}") is None:
                return known
            entry = _describe(*run, url, job, result, heartbeat)
            return entry.model_copy(update={"reason": self._why_unknown(folder)}) if entry.phase == "lost" else entry
        except (CpmbeeError, ValueError) as error:
            self._notes.append(f"{folder}: {error}")
            return known

    def _why_unknown(self, folder: str) -> str | None:
        """Return why the PyTorchJob of a run may exist although it was not found."""
        if self._namespace is None:
            return "the cluster was not read"
        key = f"{folder}/{keys.SPEC}"
        with suppress(CpmbeeError):  # a spec of a newer release, for example
            namespace = parse_spec(self._store.get(key), source=f"{self._store.url}/{key}").cluster.namespace
            if namespace not in (None, self._namespace):
                return f"not read: it was submitted to namespace {namespace}"
        return None


def _read(store: Store, key: str) -> Object:
    """Return the JSON object, an empty one if there is none. Raises `ValueError` for a damaged one."""
    try:
        return documents.from_json(store.get(key))
    except NotFoundError:
        return {}


def _last_change(entry: RunEntry) -> tuple[str, str, str]:
    return entry.created_at or entry.updated_at or entry.ended_at or "", entry.name, entry.run_id
