"""From a spec to a run: found where it exists, begun where not.

The steps are ordered so that a submit that dies between any two of them is completed by the next one: nothing is
written before the cluster has said that it would take the manifest; then the run's `spec.yaml`, by conditional put;
then the PyTorchJob, whose name follows from the run's.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cpmbee_job.errors import ConflictError, RefusedError, StoreError, UnreachableError
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import Cluster, Object, ignore_warning
from cpmbee_job.launch.lifecycle.pytorchjob import create_job, get_job, require_accepted
from cpmbee_job.launch.local_inputs import Bar, LocalPlace, find_places, hash_places, no_bar, send
from cpmbee_job.launch.manifest.render import render
from cpmbee_job.launch.runs.find import FoundRun, open_run
from cpmbee_job.launch.runs.listing import last_succeeded
from cpmbee_job.launch.runs.observe import observe
from cpmbee_job.launch.runs.status import RunStatus
from cpmbee_job.run import identity, keys
from cpmbee_job.run.resumable import flatten
from cpmbee_job.run.run import Run
from cpmbee_job.spec import JobSpec, StorageSpec
from cpmbee_job.store.urls import open_store

TRIES = 20
"""Looks at a run that others are beginning just now."""


@dataclass(frozen=True)
class Submission:
    """What a submit has led to."""

    found: FoundRun
    namespace: str
    adopted: bool
    """Whether the run was there already."""
    why: str
    """In words."""
    succeeded: bool = False
    """Whether it has ended, well."""
    differences: tuple[str, ...] = ()
    """Fields in which the adopted run is not what was asked for now; they change nothing that is computed."""
    manifest: Object | None = None
    """Of a dry run: what would be sent; None where nothing would."""


def submit(
    spec: JobSpec,
    cluster: Cluster,
    *,
    key: str = "",
    new: bool = False,
    if_changed: bool = False,
    dry_run: bool = False,
    bar: Bar = no_bar,
    warn: Callable[[str], None] = ignore_warning,
    on_run: Callable[[FoundRun], None] = lambda _found: None,
) -> Submission:
    """Begin the run that the spec and the key mean, or adopt it; `new` begins another one, `if_changed` does where the
    last run of this name to succeed has trained something else, and none is at it. `dry_run` writes nothing. `warn`
    gets what the cluster has to say about the manifest, `on_run` the run before anything of it is written.

    Raises `SpecError` for what no cluster could run or this one does not take, `PreflightError` where cluster, store or
    inputs are out of reach, `RefusedError` for a run that has ended otherwise than well.
    """
    places = require_submittable(spec)
    cluster.server_version()
    storage = spec.storage.seen_by_launcher()
    _require_store(spec, storage)
    spec, uploads = hash_places(spec, places, bar)
    if not dry_run:
        send(uploads, open_store(keys.uploads_url(spec.output), storage), bar)
    # where the run is, for those who find it in the store
    spec = spec.with_fields({"cluster.namespace": cluster.namespace})
    submitter = _Submitter(spec, storage, cluster, identity.identity(spec, storage, key), dry_run, warn, on_run)
    return submitter.begin_another() if new else submitter.adopt_or_begin(if_changed=if_changed)


def require_submittable(spec: JobSpec) -> dict[str, LocalPlace]:
    """What has to be uploaded, by dotted key. Raises `SpecError` for what no cluster could run, without asking any."""
    places = find_places(spec)
    render(spec.with_fields(dict.fromkeys(places, "s3://uploads/")), "0")
    return places


def look(found: FoundRun, cluster: Cluster) -> RunStatus:
    """The run's status. Raises `UnreachableError` where the cluster does not answer: silence is no sign here."""
    status = observe(found, cluster)
    if status.phase == "lost" and not status.ended:
        raise UnreachableError("; ".join([*status.problems, *status.notes]))
    return status


class _Submitter:
    """Begins or finds a run of one identity."""

    def __init__(
        self,
        spec: JobSpec,
        storage: StorageSpec,
        cluster: Cluster,
        wanted: str,
        dry_run: bool,
        warn: Callable[[str], None],
        on_run: Callable[[FoundRun], None],
    ) -> None:
        self._spec, self._storage, self._cluster = spec, storage, cluster
        self._identity, self._dry_run, self._warn, self._on_run = wanted, dry_run, warn, on_run

    def adopt_or_begin(self, *, if_changed: bool) -> Submission:
        """The newest run of the identity: adopted, or begun where there is none. `if_changed`: one that has ended is
        followed by another, unless the job's last run to succeed has trained the same."""
        for _ in range(TRIES):
            number = max(self._newest(), 1)
            found = self._look(number)
            if _exists(found):
                status = look(found, self._cluster)
                if not if_changed or not status.ended or _is_half_done(found, status):
                    return self._adopt(found, status)
                found = self._look(number + 1)
                if _exists(found):  # somebody else was quicker
                    continue
            if if_changed and (same := self._last_succeeded()) is not None:
                return self._adopt(same, look(same, self._cluster))
            submission = self._begin(found)
            if submission is not None:
                return submission
        raise StoreError(f"{self._spec.output}: its listings lag behind what is written", hint="try again")

    def begin_another(self) -> Submission:
        """One run more of the identity; of two who ask for it at once each gets one."""
        number = self._newest()
        while True:
            number += 1
            found = self._look(number)
            if not _exists(found):
                submission = self._begin(found)
                if submission is not None:
                    return submission

    def _newest(self) -> int:
        """Number of the newest run of this identity, 0 before the first."""
        ids = open_store(f"{self._spec.output.rstrip('/')}/{self._spec.name}", self._storage).folders()
        return max((identity.generation(self._identity, run_id) for run_id in ids), default=0)

    def _look(self, number: int) -> FoundRun:
        return self._open(identity.run_id(self._identity, number))

    def _open(self, run_id: str) -> FoundRun:
        url = keys.run_url(self._spec.output, self._spec.name, run_id)
        run, problem = open_run(url, self._storage)
        if problem is not None:
            raise StoreError(problem)
        job = get_job(self._cluster, naming.job_name(self._spec.name, run_id), url)
        return FoundRun(self._spec.name, run_id, url, run, job, storage=self._storage)

    def _begin(self, found: FoundRun) -> Submission | None:
        """None where somebody else has, since it was looked for."""
        manifest = render(self._spec, found.run_id, self._cluster.namespace)
        require_accepted(self._cluster, self._spec, manifest, self._warn)
        if self._dry_run:
            return self._submission(found, "nothing has been sent", manifest=manifest)
        self._on_run(found)
        try:
            Run.begin(self._spec, found.run_id, self._storage)
        except ConflictError:
            return None
        create_job(self._cluster, manifest, found.url)
        return self._submission(found, "submitted")

    def _last_succeeded(self) -> FoundRun | None:
        """The job's last run to succeed, whatever its key; None where that has trained something else."""
        run_id = last_succeeded(self._spec.output, self._spec.name, self._storage)
        return self._open(run_id) if run_id and identity.has_same_outcome(self._identity, run_id) else None

    def _adopt(self, found: FoundRun, status: RunStatus) -> Submission:
        self._on_run(found)
        if status.phase == "succeeded":
            return self._submission(found, "it has succeeded before", adopted=True, succeeded=True)
        if not status.ended:
            return self._submission(found, f"it is there already, {status.phase}", adopted=True)
        if found.run is not None and _is_half_done(found, status):
            return self._complete(found, found.run)
        run = found.arguments(status.job and self._cluster.namespace)
        raise RefusedError(
            f"{found.reference} {_end(status)}",
            hint=f"`cpmbee-job resume {run}` goes on with it; `--new` begins another of the same",
        )

    def _complete(self, found: FoundRun, run: Run) -> Submission:
        """Of a submit that ended half-way the PyTorchJob is missing. The run's own spec counts: the other submit may be
        about to create the very same."""
        namespace = run.spec.cluster.namespace
        if namespace not in (None, self._cluster.namespace):
            raise RefusedError(
                f"{found.reference} was submitted to the namespace {namespace}, where it may be by now",
                hint=f"--namespace {namespace}, or `--new` to begin another run of the same here",
            )
        manifest = render(run.spec, found.run_id, self._cluster.namespace)
        if self._dry_run:
            return self._submission(found, "nothing has been sent", adopted=True, manifest=manifest)
        created = create_job(self._cluster, manifest, found.url)
        why = "its submit had ended half-way, and is completed now" if created else "it is being submitted already"
        return self._submission(found, why, adopted=True)

    def _submission(
        self,
        found: FoundRun,
        why: str,
        *,
        adopted: bool = False,
        succeeded: bool = False,
        manifest: Object | None = None,
    ) -> Submission:
        differences = () if found.run is None else tuple(_differences(found.run.spec, self._spec))
        return Submission(found, self._cluster.namespace, adopted, why, succeeded, differences, manifest)


def _require_store(spec: JobSpec, storage: StorageSpec) -> None:
    """Raises `StoreError` where this machine can't read there."""
    try:
        open_store(spec.output, storage).info(keys.SPEC)
    except StoreError as error:
        of_pods = spec.storage.endpoint_url is not None and spec.storage.launcher_endpoint_url is None
        if not of_pods or "storage.endpoint_url" not in (error.hint or ""):
            raise
        hint = f"{error.hint}; where that is an address for pods only, name one that this machine reaches"
        raise StoreError(error.message, hint=f"{hint} in storage.launcher_endpoint_url") from error


def _exists(found: FoundRun) -> bool:
    return found.run is not None or found.job is not None


def _is_half_done(found: FoundRun, status: RunStatus) -> bool:
    """Whether its submit ended half-way: it has begun, and no pod has ever worked on it."""
    if found.run is None or status.phase != "lost":
        return False
    return all(entry.key == keys.SPEC for entry in found.run.store.list())


def _end(status: RunStatus) -> str:
    if status.phase == "lost":
        return "is gone from the cluster and has no result"
    words = "has been cancelled" if status.phase == "cancelled" else "has failed"
    return words + (f": {status.reason}" if status.reason else "")


def _differences(there: JobSpec, asked: JobSpec) -> Iterator[str]:
    """`key: what the run has, not what was asked for`, for each field that differs."""
    has, wants = flatten(there.model_dump(mode="json")), flatten(asked.model_dump(mode="json"))
    for key in {**has, **wants}:
        if has.get(key) != wants.get(key):
            yield f"{key}: {json.dumps(has.get(key))}, not {json.dumps(wants.get(key))}"
