"""Which run a user means, by name or URL: looked for in the cluster and in the store; either may be silent."""

import difflib
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from cpmbee_job.errors import ClusterError, CpmbeeError, NotFoundError, StoreError, UsageError
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.fields import part, parts, text
from cpmbee_job.launch.kube.protocol import PYTORCHJOBS, Cluster, Object
from cpmbee_job.process import contract
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run, check_run_id
from cpmbee_job.spec import StorageSpec
from cpmbee_job.spec.types import NAME_PATTERN, RESERVED_NAMES
from cpmbee_job.store.urls import open_store


@dataclass(frozen=True)
class FoundRun:
    """A run as cluster and store showed it when it was looked for. `run` and `job` are not both None, unless one of
    the two sides could not be asked."""

    name: str
    run_id: str
    url: str
    run: Run | None
    """Its folder in the store. None: the store can't be asked, or (no `store_problem`) nobody has begun it yet."""
    job: Object | None
    """Its PyTorchJob. None: there is none (any more), or (`cluster_problem`) the cluster can't be asked."""
    store_problem: str | None = None
    cluster_problem: str | None = None
    storage: StorageSpec = field(default_factory=StorageSpec)
    """How this machine reaches the store."""

    @property
    def reference(self) -> str:
        """What a user calls it."""
        return f"{self.name}/{self.run_id}"

    @property
    def job_name(self) -> str:
        """Of its PyTorchJob, whether that is there or not."""
        return naming.job_name(self.name, self.run_id)

    @property
    def labels(self) -> dict[str, str]:
        """Of its PyTorchJob and its pods."""
        return {naming.NAME_LABEL: self.name, naming.RUN_LABEL: self.run_id}

    def arguments(self, namespace: str | None) -> str:
        """What to type to name it: by the namespace of its PyTorchJob, or by its URL where that is gone (None)."""
        if namespace is not None:
            return f"{self.reference} -n {namespace}"
        endpoint = self.storage.endpoint_url
        return self.url + (f" --endpoint-url {endpoint}" if endpoint else "")


def find_run(
    reference: str, cluster: Cluster | None, *, output: str | None = None, storage: StorageSpec | None = None
) -> FoundRun:
    """The run that `<name>/<run id>` (the id may be cut short, or left out, where that is unique) or a URL means.

    The cluster knows where its runs lie; `output` is where others are looked for. `storage`: its set fields count more
    than those the job was rendered with. Raises `NotFoundError` naming what is near, `UsageError` for what could be
    several, the store's or the cluster's error where neither side could look.
    """
    storage = storage or StorageSpec()
    url = as_url(reference)
    if url is not None:
        return _find_at(url, cluster, storage)
    name, _, run_id = reference.partition("/")
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"{reference!r} names no run", hint="<name>/<run id>, or the URL of the run's folder")
    if run_id:
        found = _find_named(name, check_run_id(run_id), cluster, output, storage)
        if found is not None:
            return found
    return _find_near(reference, name, run_id, cluster, output, storage)


def find_at_home(
    reference: str,
    cluster: Cluster | None,
    connect_to: Callable[[str], Cluster],
    *,
    output: str | None = None,
    storage: StorageSpec | None = None,
) -> tuple[FoundRun, Cluster | None]:
    """The same, and the cluster in whose namespace it is: a run whose PyTorchJob is not in this one may be well in the
    one that it was submitted to, which the store knows."""
    found = find_run(reference, cluster, output=output, storage=storage)
    home = None if found.run is None else found.run.spec.cluster.namespace
    if cluster is None or found.job is not None or home in (None, cluster.namespace):
        return found, cluster
    assert home is not None
    cluster = connect_to(home)
    job, cluster_problem = _job_at(found.url, cluster, found.name, found.run_id)
    return replace(found, job=job, cluster_problem=cluster_problem), cluster


def as_url(reference: str) -> str | None:
    """The URL where the reference is one (a path starts like one), else None."""
    if "://" in reference:
        return reference.rstrip("/")
    if reference.startswith(("/", "./", "../", "~")) or reference.count("/") > 1:
        return str(Path(reference).expanduser().resolve())
    return None


def job_url(job: Object) -> str:
    """Where the job's run lies, "" where it does not say."""
    return text(job, "metadata", "annotations", naming.URL_ANNOTATION)


def job_labels(job: Object) -> tuple[str, str]:
    """Name and run id, "" where it has no such label."""
    labels = part(job, "metadata", "labels")
    return text(labels, naming.NAME_LABEL), text(labels, naming.RUN_LABEL)


def job_storage(job: Object, storage: StorageSpec) -> StorageSpec:
    """How this machine reaches the store of the job's run: as its pods do, but for the set fields of `storage`."""
    rendered = StorageSpec()
    for variable in _variables(job):
        if variable.get("name") == contract.STORAGE_ENV and isinstance(variable.get("value"), str):
            with suppress(ValueError):  # what the environment says may do
                rendered = StorageSpec.known_from_json(variable["value"]).seen_by_launcher()
    given = {key: getattr(storage, key) for key in storage.model_fields_set}
    return rendered.model_copy(update={"ca_bundle": None, **given})  # a pod's path is none of this machine


def open_run(url: str, storage: StorageSpec) -> tuple[Run | None, str | None]:
    """The run in the store, or None with the reason where the store can't tell; None without one: not begun."""
    try:
        return Run.open(url, storage), None
    except NotFoundError:
        return None, None
    except CpmbeeError as error:
        return None, str(error)


def _variables(job: Object) -> Iterable[Object]:
    for replica in part(job, "spec", "pytorchReplicaSpecs").values():
        pod = part(replica, "template", "spec")
        for container in [*parts(pod, "containers"), *parts(pod, "initContainers")]:
            yield from parts(container, "env")


def _find_at(url: str, cluster: Cluster | None, storage: StorageSpec) -> FoundRun:
    if url.rpartition("://")[2].count("/") < 2:
        raise UsageError(f"{url}: not the URL of a run's folder", hint="<output>/<name>/<run id>")
    output, name, run_id = url.rsplit("/", 2)
    job, cluster_problem = None, None
    if url.startswith("s3://") and re.fullmatch(NAME_PATTERN, name):  # a cluster can't reach any other
        job, cluster_problem = _job_at(url, cluster, name, run_id)
    storage = storage if job is None else job_storage(job, storage)
    if job is None:
        storage = storage.seen_by_launcher()
    run, store_problem = open_run(url, storage)
    if run is None and job is None:
        if store_problem is not None:
            raise StoreError(store_problem)
        others = _folders(f"{output}/{name}", storage)
        raise NotFoundError(f"{url}: no run there (it has no {keys.SPEC})", hint=_nearest(run_id, others))
    return FoundRun(name, run_id, url, run, job, store_problem, cluster_problem, storage)


def _find_named(
    name: str, run_id: str, cluster: Cluster | None, output: str | None, storage: StorageSpec
) -> FoundRun | None:
    """The run of exactly that id, or None where neither side has it. Raises where neither could look."""
    job, cluster_problem = _job(cluster, name, run_id)
    if job is not None:
        url, storage = job_url(job), job_storage(job, storage)
        if not url:
            problem = f"the PyTorchJob has no annotation {naming.URL_ANNOTATION}, which says where its run lies"
            return FoundRun(name, run_id, url, None, job, problem, None, storage)
        run, store_problem = open_run(url, storage)
        return FoundRun(name, run_id, url, run, job, store_problem, None, storage)
    if output is None:
        if cluster_problem is not None:
            raise ClusterError(
                cluster_problem, hint="--output says where runs lie, to look for it in the store without the cluster"
            )
        return None
    url, storage = keys.run_url(output, name, run_id), storage.seen_by_launcher()
    run, store_problem = open_run(url, storage)
    if store_problem is not None:
        raise StoreError(store_problem)
    return None if run is None else FoundRun(name, run_id, url, run, None, None, cluster_problem, storage)


def _job_at(url: str, cluster: Cluster | None, name: str, run_id: str) -> tuple[Object | None, str | None]:
    """The PyTorchJob of the run at that URL: there may be one of the same name under another output."""
    job, cluster_problem = _job(cluster, name, run_id)
    return (job if job is not None and job_url(job).rstrip("/") == url else None), cluster_problem


def _job(cluster: Cluster | None, name: str, run_id: str) -> tuple[Object | None, str | None]:
    """The run's PyTorchJob, or None; with the reason where the cluster can't tell."""
    if cluster is None:
        return None, "no cluster to ask"
    try:
        job = cluster.get(PYTORCHJOBS, naming.job_name(name, run_id))
    except NotFoundError:
        return None, None
    except ClusterError as error:
        return None, str(error)
    return (job if job_labels(job) == (name, run_id) else None), None  # a long name is cut in the job's


def _find_near(
    reference: str, name: str, run_id: str, cluster: Cluster | None, output: str | None, storage: StorageSpec
) -> FoundRun:
    """The one run that the reference begins, else an error that names what is near."""
    known = {job_labels(job) for job in _jobs(cluster)}
    ids = {other for known_name, other in known if known_name == name}
    if output is not None:
        ids |= set(_folders(f"{output.rstrip('/')}/{name}", storage.seen_by_launcher()))
    begun = sorted(other for other in ids if other.startswith(run_id))
    if len(begun) > 1:
        raise UsageError(f"{reference} could be {_enumerated(f'{name}/{other}' for other in begun)}")
    if begun:
        found = _find_named(name, begun[0], cluster, output, storage)
        if found is not None:
            return found
    where = "" if cluster is None else f" in namespace {cluster.namespace}"
    where += "" if output is None else f"{' or' if where else ''} under {output}"
    if ids:
        hint = _nearest(run_id, ids)
    else:
        names = {known_name for known_name, _ in known}
        if output is not None:
            names |= set(_folders(output, storage.seen_by_launcher())) - RESERVED_NAMES
        hint = _nearest(name, names)
    if output is None:
        hint = f"{hint + '; ' if hint else ''}--output says where to look for runs that the cluster has forgotten"
    raise NotFoundError(f"{reference}: no such run{where}", hint=hint)


def _jobs(cluster: Cluster | None) -> list[Object]:
    if cluster is None:
        return []
    try:
        return list(cluster.list(PYTORCHJOBS, naming.MANAGED_BY))
    except (ClusterError, NotFoundError):
        return []


def _folders(url: str, storage: StorageSpec) -> list[str]:
    try:
        return open_store(url, storage).folders()
    except CpmbeeError:
        return []


def _nearest(wanted: str, known: Iterable[str]) -> str | None:
    candidates = sorted(known)
    near = difflib.get_close_matches(wanted, candidates, n=5, cutoff=0.5) or candidates[-5:]
    return f"there is {_enumerated(near)}" if near else None


def _enumerated(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
