"""Find the run that a user means, by name or URL, in the cluster and in the object store. Either may be unreachable."""

import difflib
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from cpmbee_job.errors import ClusterError, CpmbeeError, NotFoundError, StoreError, UsageError
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.fields import object_at, objects_at, text_at
from cpmbee_job.launch.kube.protocol import PYTORCHJOBS, Cluster, Object, get_or_none
from cpmbee_job.process import contract
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run, check_run_id
from cpmbee_job.spec import StorageSpec
from cpmbee_job.spec.types import NAME_PATTERN, RESERVED_NAMES
from cpmbee_job.store.urls import open_store


@dataclass(frozen=True)
class FoundRun:
    """A run as the cluster and the object store showed it. `run` and `job` are both None only if one of the two could
    not be read."""

    name: str
    run_id: str
    url: str
    run: Run | None
    """Its folder. None: the object store cannot be read (`store_problem`), or no pod has begun the run yet."""
    job: Object | None
    """Its PyTorchJob. None: the cluster cannot be read (`cluster_problem`), or there is no such PyTorchJob."""
    store_problem: str | None = None
    cluster_problem: str | None = None
    storage: StorageSpec = field(default_factory=StorageSpec)
    """How this machine reaches the object store."""

    @property
    def reference(self) -> str:
        """`<name>/<run id>`."""
        return f"{self.name}/{self.run_id}"

    @property
    def job_name(self) -> str:
        """Name of its PyTorchJob, whether that exists or not."""
        return naming.job_name(self.name, self.run_id)

    @property
    def labels(self) -> dict[str, str]:
        """Labels that select its PyTorchJob and its pods."""
        return {naming.NAME_LABEL: self.name, naming.RUN_LABEL: self.run_id}

    def arguments(self, namespace: str | None) -> str:
        """Return the arguments that name the run to a command: with the namespace of its PyTorchJob, or its URL if
        there is no PyTorchJob (None)."""
        if namespace is not None:
            return f"{self.reference} -n {namespace}"
        endpoint = self.storage.endpoint_url
        return self.url + (f" --endpoint-url {endpoint}" if endpoint else "")


def find_run(
    reference: str, cluster: Cluster | None, *, output: str | None = None, storage: StorageSpec | None = None
) -> FoundRun:
    """Find a run by URL or by `<name>/<run id>`; a unique prefix of the id, or the name alone, is enough.

    A PyTorchJob names the URL of its run; other runs are searched under `output`. The fields set in `storage` take
    precedence over those of the PyTorchJob. Raises `NotFoundError` with similar names, `UsageError` for an ambiguous
    reference, the error of the object store or the cluster if neither can be read.
    """
    search = _Search(cluster, output, storage or StorageSpec())
    url = as_url(reference)
    if url is not None:
        return search.at(url)
    name, _, run_id = reference.partition("/")
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"{reference!r}: not a run", hint="use <name>/<run id>, or the URL of the run's folder")
    found = search.named(name, check_run_id(run_id)) if run_id else None
    return found or search.similar(reference, name, run_id)


def find_at_home(
    reference: str,
    cluster: Cluster | None,
    connect_to: Callable[[str], Cluster],
    *,
    output: str | None = None,
    storage: StorageSpec | None = None,
) -> tuple[FoundRun, Cluster | None]:
    """Find a run like `find_run`, also in the namespace that it was submitted to, which its stored spec names. Returns
    the cluster with that namespace too."""
    found = find_run(reference, cluster, output=output, storage=storage)
    home = None if found.run is None else found.run.spec.cluster.namespace
    if cluster is None or found.job is not None or home is None or home == cluster.namespace:
        return found, cluster
    cluster = connect_to(home)
    job, problem = _Search(cluster, output, found.storage).job_at(found.url, found.name, found.run_id)
    return replace(found, job=job, cluster_problem=problem), cluster


def as_url(reference: str) -> str | None:
    """Return the URL if the reference is a URL or a path, else None."""
    if "://" in reference:
        return reference.rstrip("/")
    if reference.startswith(("/", "./", "../", "~")) or reference.count("/") > 1:
        return str(Path(reference).expanduser().resolve())
    return None


def job_url(job: Object) -> str:
    """Return the URL of the job's run, "" if the annotation is missing."""
    return text_at(job, "metadata", "annotations", naming.URL_ANNOTATION)


def job_labels(job: Object) -> tuple[str, str]:
    """Return the name and the run id, "" for a missing label."""
    labels = object_at(job, "metadata", "labels")
    return text_at(labels, naming.NAME_LABEL), text_at(labels, naming.RUN_LABEL)


def job_storage(job: Object, storage: StorageSpec) -> StorageSpec:
    """Return how this machine reaches the object store of the job's run: like its pods, except for the set fields of
    `storage`."""
    rendered = StorageSpec()
    for replica in object_at(job, "spec", "pytorchReplicaSpecs").values():
        pod = object_at(replica, "template", "spec")
        for container in [*objects_at(pod, "containers"), *objects_at(pod, "initContainers")]:
            for variable in objects_at(container, "env"):
                if variable.get("name") == contract.STORAGE_ENV and isinstance(variable.get("value"), str):
                    with suppress(ValueError):  # then the environment of this machine has to do
                        rendered = StorageSpec.known_from_json(variable["value"]).seen_by_launcher()
    given = {key: getattr(storage, key) for key in storage.model_fields_set}
    return rendered.model_copy(update={"ca_bundle": None, **given})  # the pods' CA bundle is not on this machine


def open_run(url: str, storage: StorageSpec) -> tuple[Run | None, str | None]:
    """Open the run in the object store. Returns None if it has not begun, and the problem if it cannot be read."""
    try:
        return Run.open(url, storage), None
    except NotFoundError:
        return None, None
    except CpmbeeError as error:
        return None, str(error)


@dataclass(frozen=True)
class _Search:
    cluster: Cluster | None
    output: str | None
    storage: StorageSpec

    def at(self, url: str) -> FoundRun:
        """Return the run in the folder `url`."""
        if url.rpartition("://")[2].count("/") < 2:
            raise UsageError(f"{url}: not the URL of a run's folder", hint="use <output>/<name>/<run id>")
        output, name, run_id = url.rsplit("/", 2)
        job, problem = None, None
        if url.startswith("s3://") and re.fullmatch(NAME_PATTERN, name):  # pods cannot reach any other store
            job, problem = self.job_at(url, name, run_id)
        found = self._found(name, run_id, url, job, problem)
        if found.run is None and job is None:
            if found.store_problem is not None:
                raise StoreError(found.store_problem)
            others = _folders(f"{output}/{name}", found.storage)
            raise NotFoundError(f"{url}: no run there ({keys.SPEC} is missing)", hint=_similar_to(run_id, others))
        return found

    def named(self, name: str, run_id: str) -> FoundRun | None:
        """Return the run with exactly this id, None if there is none. Raises if it could not be searched for."""
        job, problem = self._job(name, run_id)
        if job is not None:
            if job_url(job):
                return self._found(name, run_id, job_url(job), job)
            missing = f"the PyTorchJob has no annotation {naming.URL_ANNOTATION}, which names the run's folder"
            return FoundRun(name, run_id, "", None, job, missing, storage=job_storage(job, self.storage))
        if self.output is None:
            if problem is not None:
                raise ClusterError(problem, hint="use --output to find the run in the object store")
            return None
        found = self._found(name, run_id, keys.run_url(self.output, name, run_id), None, problem)
        if found.store_problem is not None:
            raise StoreError(found.store_problem)
        return found if found.run is not None else None

    def similar(self, reference: str, name: str, run_id: str) -> FoundRun:
        """Return the only run that the reference is a prefix of. Raises an error with similar names otherwise."""
        known = self._known_jobs()
        ids = {other for known_name, other in known if known_name == name}
        if self.output is not None:
            ids |= set(_folders(f"{self.output.rstrip('/')}/{name}", self.storage.seen_by_launcher()))
        matching = sorted(other for other in ids if other.startswith(run_id))
        if len(matching) > 1:
            raise UsageError(f"{reference} is ambiguous: {', '.join(f'{name}/{other}' for other in matching)}")
        if matching and (found := self.named(name, matching[0])) is not None:
            return found
        places = [] if self.cluster is None else [f" in namespace {self.cluster.namespace}"]
        places += [] if self.output is None else [f" under {self.output}"]
        if ids:
            hint = _similar_to(run_id, ids)
        else:
            names = {known_name for known_name, _ in known}
            if self.output is not None:
                names |= set(_folders(self.output, self.storage.seen_by_launcher())) - RESERVED_NAMES
            hint = _similar_to(name, names)
        if self.output is None:
            searched = "use --output to find runs whose PyTorchJob was deleted"
            hint = f"{hint}; {searched}" if hint else searched
        raise NotFoundError(f"{reference}: no such run{' or'.join(places)}", hint=hint)

    def job_at(self, url: str, name: str, run_id: str) -> tuple[Object | None, str | None]:
        """Return the PyTorchJob of the run at `url`, not one of the same name under another output."""
        job, problem = self._job(name, run_id)
        return (job if job is not None and job_url(job).rstrip("/") == url else None), problem

    def _found(
        self, name: str, run_id: str, url: str, job: Object | None, cluster_problem: str | None = None
    ) -> FoundRun:
        storage = self.storage.seen_by_launcher() if job is None else job_storage(job, self.storage)
        run, store_problem = open_run(url, storage)
        return FoundRun(name, run_id, url, run, job, store_problem, cluster_problem, storage)

    def _job(self, name: str, run_id: str) -> tuple[Object | None, str | None]:
        """Return the run's PyTorchJob, or None and the problem if the cluster cannot be read."""
        if self.cluster is None:
            return None, "no cluster connection"
        try:
            job = get_or_none(self.cluster, PYTORCHJOBS, naming.job_name(name, run_id))
        except ClusterError as error:
            return None, str(error)
        # A job's name contains a truncated name, so that another run's job may have it.
        return (job if job is not None and job_labels(job) == (name, run_id) else None), None

    def _known_jobs(self) -> set[tuple[str, str]]:
        """Return the name and run id of all PyTorchJobs."""
        if self.cluster is not None:
            with suppress(ClusterError, NotFoundError):
                return {job_labels(job) for job in self.cluster.list(PYTORCHJOBS, naming.MANAGED_BY)}
        return set()


def _folders(url: str, storage: StorageSpec) -> list[str]:
    try:
        return open_store(url, storage).folders()
    except CpmbeeError:
        return []


def _similar_to(wanted: str, known: Iterable[str]) -> str | None:
    candidates = sorted(known)
    similar = difflib.get_close_matches(wanted, candidates, n=5, cutoff=0.5) or candidates[-5:]
    return f"existing: {', '.join(similar)}" if similar else None
