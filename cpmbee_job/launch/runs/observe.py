"""Read the state of a run from the cluster and the object store, in few requests, and describe it."""

from collections.abc import Container
from datetime import UTC, datetime
from typing import Any

from cpmbee_job import documents
from cpmbee_job.errors import ClusterError, CpmbeeError, NotFoundError
from cpmbee_job.launch.kube.fields import condition, name_of, object_at, text_at, time_at
from cpmbee_job.launch.kube.protocol import EVENTS, NODES, PODS, PYTORCHJOBS, WORKLOADS, Cluster, Object, get_or_none
from cpmbee_job.launch.runs.diagnosis import ClusterSnapshot, StoreSnapshot
from cpmbee_job.launch.runs.find import FoundRun, open_run
from cpmbee_job.launch.runs.jobs import is_queued, is_suspended, num_workers
from cpmbee_job.launch.runs.phases import job_phase
from cpmbee_job.launch.runs.pods import is_silent, needs_events
from cpmbee_job.launch.runs.status import RunStatus, describe_run
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run

MAX_NODES = 3
"""Silent nodes that are read; the others most likely have the same problem."""
FIRST_PODS_SECONDS = 60.0
"""Seconds within which the operator creates the first pods of a job."""
UNUSED_METADATA = ("managedFields", "annotations", "ownerReferences")
"""Metadata that no status uses; with it, 512 pods would take 10 MB."""


def observe(found: FoundRun, cluster: Cluster | None) -> RunStatus:
    """Return the current status of a run.

    Reads its PyTorchJob, its pods, events only where something needs an explanation, and two small documents of the
    object store. What cannot be read becomes a note of the status.
    """
    notes: list[str] = []
    in_store = _read_store(found, notes)
    in_cluster = _read_cluster(found, cluster, notes, ended=in_store.result is not None)
    now = datetime.now(UTC)
    return describe_run(found.name, found.run_id, found.url, in_cluster, in_store, now=now, notes=notes)


def read_heartbeat(run: Run) -> dict[str, Any] | None:
    """Read `status.json`; None if there is none or it is damaged."""
    try:
        return documents.from_json(run.store.get(keys.STATUS))
    except (NotFoundError, ValueError):
        return None


def _read_store(found: FoundRun, notes: list[str]) -> StoreSnapshot:
    run, problem = found.run, found.store_problem
    if run is None and found.url:
        run, problem = open_run(found.url, found.storage)
    if run is None:
        if problem is not None:
            notes.append(f"the store: {problem}")
        return StoreSnapshot(known=problem is None)
    try:
        return StoreSnapshot(spec=run.spec, result=run.result(), heartbeat=read_heartbeat(run))
    except CpmbeeError as error:
        notes.append(f"the store: {error}")
        return StoreSnapshot(known=False, spec=run.spec)


def _read_cluster(found: FoundRun, cluster: Cluster | None, notes: list[str], *, ended: bool) -> ClusterSnapshot:
    if found.job is None and not found.url.startswith("s3://"):
        return ClusterSnapshot()  # a local run: pods cannot reach its store
    problem = found.cluster_problem or "not connected"
    if cluster is not None:
        try:
            return _ClusterReader(cluster, notes).read(found, ended=ended)
        except CpmbeeError as error:
            problem = error.message
    notes.append(f"the cluster: {problem}")
    return ClusterSnapshot(known=False)


class _ClusterReader:
    def __init__(self, cluster: Cluster, notes: list[str]) -> None:
        self._cluster, self._notes = cluster, notes

    def read(self, found: FoundRun, *, ended: bool) -> ClusterSnapshot:
        """Read the objects of a run; `ended` runs need no explanation by events, nodes and workloads."""
        job = get_or_none(self._cluster, PYTORCHJOBS, found.job_name)
        if job is None:
            return ClusterSnapshot()
        pods = self._list(PODS, "pods", found.labels)
        if ended:
            return ClusterSnapshot(job=job, pods=pods)
        workloads = []
        if is_queued(job):
            labels = {"kueue.x-k8s.io/job-uid": text_at(job, "metadata", "uid")}
            workloads = self._list(WORKLOADS, "Kueue's workloads", labels)
        silent = sorted({text_at(pod, "spec", "nodeName") for pod in pods if is_silent(pod)} - {""})
        nodes = {node: self._why_silent(node) for node in silent[:MAX_NODES]}
        return ClusterSnapshot(
            job=job,
            pods=pods,
            events=self._read_events(job, pods),
            silent_nodes=nodes,
            workload=next(iter(workloads), None),
        )

    def _read_events(self, job: Object, pods: list[Object]) -> list[Object]:
        events, phase = [], job_phase(job)
        is_short = phase != "succeeded" and not is_suspended(job) and len(pods) < num_workers(job)[1]
        if phase == "failed" or is_short:
            events += self._list(EVENTS, "events", fields=f"involvedObject.uid={text_at(job, 'metadata', 'uid')}")
        unclear = {name_of(pod) for pod in pods if needs_events(pod) or _is_replacement(pod, job)}
        if unclear and phase not in ("failed", "succeeded"):
            events += self._list(EVENTS, "events", fields="involvedObject.kind=Pod,type!=Normal", about=unclear)
        return events

    def _why_silent(self, node: str) -> str:
        try:
            ready = condition(self._cluster.get(NODES, node), "Ready")
        except NotFoundError:
            return "it does not exist"
        except ClusterError as error:
            self._notes.append(f"nodes: {error.message}")
            return ""
        if text_at(ready, "status") == "True":
            return ""
        return f"not ready since {text_at(ready, 'lastTransitionTime')}: {text_at(ready, 'message')}"

    def _list(
        self,
        kind: str,
        what: str,
        labels: dict[str, str] | None = None,
        fields: str = "",
        about: Container[str] | None = None,
    ) -> list[Object]:
        """List objects without unused metadata. `about`: only events of objects with these names."""
        listed = []
        try:
            for item in self._cluster.list(kind, labels, fields):
                if about is None or text_at(item, "involvedObject", "name") in about:
                    for key in UNUSED_METADATA:
                        object_at(item, "metadata").pop(key, None)
                    listed.append(item)
        except NotFoundError:  # no such kind: Kueue is not installed
            return []
        except ClusterError as error:
            note = f"{what}: {error.message}"
            if note not in self._notes:
                self._notes.append(note)
        return listed


def _is_replacement(pod: Object, job: Object) -> bool:
    """Return whether the pod seems to replace one that its node evicted or lost."""
    created, started = time_at(pod, "metadata", "creationTimestamp"), time_at(job, "status", "startTime")
    if created is None or started is None:
        return False
    return (created - started).total_seconds() > FIRST_PODS_SECONDS
