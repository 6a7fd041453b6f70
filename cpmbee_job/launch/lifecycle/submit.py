"""Submit a spec: find its run, or start it.

The digests of the local inputs determine their URLs and the run id, so the manifest is final before anything is
uploaded. The order of the steps lets the next submit complete one that was interrupted: nothing is written before the
cluster has accepted the manifest in a dry run. Then follow the uploads, the run's `spec.yaml`, by conditional put, and
the PyTorchJob, whose name is derived from the run's.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cpmbee_job.errors import ConflictError, RefusedError, StoreError, UnreachableError
from cpmbee_job.launch.checks.server_check import dry_run
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import Cluster, Object, ignore_warning
from cpmbee_job.launch.lifecycle.cluster_jobs import create_job, get_job
from cpmbee_job.launch.local_inputs import Bar, LocalInput, Uploads, find_inputs, hash_inputs, no_bar, upload_inputs
from cpmbee_job.launch.manifest.render import render, require_cluster
from cpmbee_job.launch.runs.find import FoundRun, open_run
from cpmbee_job.launch.runs.listing import last_succeeded
from cpmbee_job.launch.runs.observe import observe
from cpmbee_job.launch.runs.status import RunStatus
from cpmbee_job.run import identity, keys
from cpmbee_job.run.identity import flatten
from cpmbee_job.run.run import Run
from cpmbee_job.spec import JobSpec, StorageSpec
from cpmbee_job.store.urls import open_store

TRIES = 20
"""Maximum number of searches for the run while other commands start runs of the same identity."""


@dataclass(frozen=True)
class SubmitOptions:
    """The options of `submit` with these names, and callbacks."""

    key: str = ""
    """Distinguishes runs of an identical spec."""
    new: bool = False
    """Start another run even if one exists."""
    if_changed: bool = False
    """Start another run after one that ended, unless the job's last successful run trained the same."""
    dry_run: bool = False
    """Write nothing."""
    bar: Bar = no_bar
    warn: Callable[[str], None] = ignore_warning
    """Gets the API's warnings about the manifest."""
    on_run: Callable[[FoundRun], None] = lambda _found: None
    """Gets the run before anything of it is written."""


@dataclass(frozen=True)
class Submission:
    """The outcome of a submit."""

    found: FoundRun
    namespace: str
    adopted: bool
    """Whether the run existed before."""
    why: str
    """What happened, as text."""
    succeeded: bool = False
    """Whether the run has already succeeded."""
    differences: tuple[str, ...] = ()
    """Fields in which the existing run differs from the submitted spec, without effect on what is computed."""
    manifest: Object | None = None
    """In a dry run: what would be created; None if nothing."""


def require_submittable(spec: JobSpec) -> dict[str, LocalInput]:
    """Return the local inputs by dotted key. Raises `SpecError` if the spec cannot run on a cluster; contacts none."""
    inputs = find_inputs(spec)
    require_cluster(spec, inputs)
    return inputs


def submit(
    spec: JobSpec, inputs: Mapping[str, LocalInput], cluster: Cluster, options: SubmitOptions = SubmitOptions()
) -> Submission:
    """Find the run of the spec and the key, or start it. `inputs`: what `require_submittable` returned for the spec.

    Raises `SpecError` for an invalid pod overlay, `RejectedError` if the cluster rejects the manifest, `PreflightError`
    if cluster, store or an input is missing or unreachable, `RefusedError` for a run that failed or was cancelled.
    """
    storage = spec.storage.seen_by_launcher()
    cluster.server_version()
    _require_store(spec, storage)
    spec, uploads = hash_inputs(spec, inputs, options.bar)
    spec = spec.with_fields({"cluster.namespace": cluster.namespace})  # for commands that find the run in the store
    of_run = identity.identity(spec, storage, options.key)
    submitter = _Submitter(spec, storage, cluster, uploads, of_run, options)
    return submitter.start_another() if options.new else submitter.find_or_start()


def observe_reachable(found: FoundRun, cluster: Cluster) -> RunStatus:
    """Return the run's status. Raises `UnreachableError` if the cluster does not answer, so that the run is not taken
    for a lost one."""
    status = observe(found, cluster)
    if status.phase == "lost" and not status.ended:
        raise UnreachableError("; ".join([*status.problems, *status.notes]))
    return status


def require_accepted(cluster: Cluster, spec: JobSpec, manifest: Object, warn: Callable[[str], None]) -> None:
    """Raise `RejectedError` or `PreflightError` if the cluster rejects the job in a dry run. An exhausted quota is only
    a warning, since the job waits for it."""
    answer = dry_run(cluster, spec, manifest)
    for warning in [*answer.warnings, *answer.exhausted]:
        warn(warning)
    answer.require_accepted(spec.name, f"{cluster.address}, namespace {cluster.namespace}")


@dataclass(frozen=True)
class _Submitter:
    """Finds and starts runs of one identity."""

    spec: JobSpec
    storage: StorageSpec
    cluster: Cluster
    uploads: Uploads
    identity: str
    options: SubmitOptions

    def find_or_start(self) -> Submission:
        """Adopt the newest run of the identity; start one if there is none, or if `--if-changed` requires it."""
        for _ in range(TRIES):
            number = max(self._newest(), 1)
            found = self._find(number)
            if _exists(found):
                status = observe_reachable(found, self.cluster)
                if not self.options.if_changed or not status.ended or _is_incomplete(found, status):
                    return self._adopt(found, status)
                found = self._find(number + 1)
                if _exists(found):  # started by another command just now
                    continue
            if self.options.if_changed and (same := self._last_succeeded()) is not None:
                return self._adopt(same, observe_reachable(same, self.cluster))
            submission = self._start(found)
            if submission is not None:
                return submission
        raise StoreError(f"{self.spec.output}: listings do not show recent writes", hint="try again")

    def start_another(self) -> Submission:
        """Start the next run of the identity. Concurrent commands start one each."""
        number = self._newest()
        while True:
            number += 1
            found = self._find(number)
            if not _exists(found) and (submission := self._start(found)) is not None:
                return submission

    def _newest(self) -> int:
        """The number of the newest run of this identity, 0 if there is none."""
        ids = open_store(f"{self.spec.output.rstrip('/')}/{self.spec.name}", self.storage).folders()
        return max((identity.generation(self.identity, run_id) for run_id in ids), default=0)

    def _find(self, number: int) -> FoundRun:
        return self._open(identity.run_id(self.identity, number))

    def _open(self, run_id: str) -> FoundRun:
        url = keys.run_url(self.spec.output, self.spec.name, run_id)
        run, problem = open_run(url, self.storage)
        if problem is not None:
            raise StoreError(problem)
        job = get_job(self.cluster, naming.job_name(self.spec.name, run_id), url)
        return FoundRun(self.spec.name, run_id, url, run, job, storage=self.storage)

    def _last_succeeded(self) -> FoundRun | None:
        """The job's last successful run under any key, if it trained the same."""
        run_id = last_succeeded(self.spec.output, self.spec.name, self.storage)
        return self._open(run_id) if run_id and identity.has_same_outcome(self.identity, run_id) else None

    def _start(self, found: FoundRun) -> Submission | None:
        """Start the run; None if another command has started it meanwhile."""
        manifest = render(self.spec, found.run_id, self.cluster.namespace)
        require_accepted(self.cluster, self.spec, manifest, self.options.warn)
        if self.options.dry_run:
            return self._submission(found, "would be submitted", manifest=manifest)
        self._upload()
        self.options.on_run(found)
        try:
            Run.begin(self.spec, found.run_id, self.storage)
        except ConflictError:
            return None
        create_job(self.cluster, manifest, found.url)
        return self._submission(found, "submitted")

    def _upload(self) -> None:
        store = open_store(keys.uploads_url(self.spec.output), self.storage)
        upload_inputs(self.uploads, store, self.options.bar)

    def _adopt(self, found: FoundRun, status: RunStatus) -> Submission:
        render(self.spec, found.run_id)  # an overlay that breaks the template is an error for an existing run too
        if not self.options.dry_run:
            self._upload()  # objects that are missing or damaged by now
        self.options.on_run(found)
        if status.phase == "succeeded":
            return self._submission(found, "already succeeded", adopted=True, succeeded=True)
        if not status.ended:
            return self._submission(found, f"already exists ({status.phase})", adopted=True)
        if found.run is not None and _is_incomplete(found, status):
            return self._complete(found, found.run)
        run = found.arguments(status.job and self.cluster.namespace)
        raise RefusedError(
            f"{found.reference} {_end(status)}",
            hint=f"`cpmbee-job resume {run}` resumes it; `--new` starts another run of the same spec",
        )

    def _complete(self, found: FoundRun, run: Run) -> Submission:
        """Create the missing PyTorchJob of an interrupted submit. It is rendered from the run's own spec, since the
        other submit may still be active and create the same PyTorchJob."""
        namespace = run.spec.cluster.namespace
        if namespace not in (None, self.cluster.namespace):
            raise RefusedError(
                f"{found.reference} was submitted to namespace {namespace}, where it may be running",
                hint=f"--namespace {namespace}, or `--new` to start another run here",
            )
        manifest = render(run.spec, found.run_id, self.cluster.namespace)
        if self.options.dry_run:
            return self._submission(found, "its PyTorchJob would be created", adopted=True, manifest=manifest)
        created = create_job(self.cluster, manifest, found.url)
        why = "completed the interrupted submit" if created else "another command is submitting it"
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
        differences = () if found.run is None else tuple(_differences(found.run.spec, self.spec))
        return Submission(found, self.cluster.namespace, adopted, why, succeeded, differences, manifest)


def _require_store(spec: JobSpec, storage: StorageSpec) -> None:
    """Raise `StoreError` if this machine cannot read from the output."""
    try:
        open_store(spec.output, storage).info(keys.SPEC)
    except StoreError as error:
        of_pods = spec.storage.endpoint_url is not None and spec.storage.launcher_endpoint_url is None
        if not of_pods or "storage.endpoint_url" not in (error.hint or ""):
            raise
        hint = f"{error.hint}; if only pods can reach it, set the address for this machine"
        raise StoreError(error.message, hint=f"{hint} in storage.launcher_endpoint_url") from error


def _exists(found: FoundRun) -> bool:
    return found.run is not None or found.job is not None


def _is_incomplete(found: FoundRun, status: RunStatus) -> bool:
    """Return whether its submit was interrupted: the run exists, but no pod has ever written to it."""
    if found.run is None or status.phase != "lost":
        return False
    return all(entry.key == keys.SPEC for entry in found.run.store.list())


def _end(status: RunStatus) -> str:
    if status.phase == "lost":
        return "is gone from the cluster and has no result"
    end = "was cancelled" if status.phase == "cancelled" else "failed"
    return end + (f": {status.reason}" if status.reason else "")


def _differences(existing: JobSpec, submitted: JobSpec) -> Iterator[str]:
    """Yield `key: value of the run, not value of the spec` for each field that differs."""
    there, here = flatten(existing.model_dump(mode="json")), flatten(submitted.model_dump(mode="json"))
    for key in {**there, **here}:
        if there.get(key) != here.get(key):
            yield f"{key}: {json.dumps(there.get(key))}, not {json.dumps(here.get(key))}"
