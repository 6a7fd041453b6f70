"""Asks cluster and store about a run, in few requests, and describes what they say."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cpmbee_job import documents
from cpmbee_job.errors import ClusterError, CpmbeeError, NotFoundError
from cpmbee_job.launch.kube.fields import condition, is_true, name_of, part, text, time_at
from cpmbee_job.launch.kube.protocol import EVENTS, NODES, PODS, PYTORCHJOBS, WORKLOADS, Cluster, Object
from cpmbee_job.launch.runs.find import FoundRun, open_run
from cpmbee_job.launch.runs.jobs import is_queued, is_suspended, num_workers
from cpmbee_job.launch.runs.pods import is_silent, needs_events
from cpmbee_job.launch.runs.status import RunStatus, StoreRecord, describe_run
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run

MOST_NODES = 3
"""Silent nodes that are asked about; the others will have the same story."""
AT_ONCE = 60.0
"""Seconds within which the operator makes a job's first pods."""
NOT_OURS = ("managedFields", "annotations", "ownerReferences")
"""Parts of a pod's metadata that no status needs."""


def observe(found: FoundRun, cluster: Cluster | None) -> RunStatus:
    """The run as it is now: its PyTorchJob, a paged list of its pods, events where something must be explained, two
    small objects of the store. What can't be read becomes a note."""
    notes: list[str] = []
    record = _read_store(found, notes)
    seen = _Seen()
    on_cluster = found.job is not None or found.url.startswith("s3://")  # pods can't reach any other store
    if cluster is not None and on_cluster:
        try:
            seen = _look(cluster, found, notes, ended=record.result is not None)
        except CpmbeeError as error:
            notes.append(f"the cluster: {error.message}")
    elif on_cluster:
        notes.append(f"the cluster: {found.cluster_problem or 'not asked'}")
    else:
        seen = _Seen(known=True)
    return describe_run(
        name=found.name,
        run_id=found.run_id,
        url=found.url,
        job=seen.job,
        pods=seen.pods,
        events=seen.events,
        silent_nodes=seen.silent_nodes,
        workload=seen.workload,
        record=record,
        now=datetime.now(UTC),
        notes=notes,
        cluster_known=seen.known,
    )


@dataclass
class _Seen:
    """What the cluster shows of a run."""

    known: bool = False
    job: Object | None = None
    pods: Sequence[Object] = ()
    events: Sequence[Object] = ()
    silent_nodes: dict[str, str] = field(default_factory=dict)
    workload: Object | None = None


def _read_store(found: FoundRun, notes: list[str]) -> StoreRecord:
    run, problem = found.run, found.store_problem
    if run is None and found.url:
        run, problem = open_run(found.url, found.storage)
    if run is None:
        if problem is not None:
            notes.append(f"the store: {problem}")
        return StoreRecord(known=problem is None)
    try:
        return StoreRecord(spec=run.spec, result=run.result(), status=_read_heartbeat(run))
    except CpmbeeError as error:
        notes.append(f"the store: {error}")
        return StoreRecord(known=False, spec=run.spec)


def _read_heartbeat(run: Run) -> dict[str, Any] | None:
    """`status.json`, None while there is none."""
    try:
        return documents.from_json(run.store.get(keys.STATUS))
    except (NotFoundError, ValueError):
        return None


def _look(cluster: Cluster, found: FoundRun, notes: list[str], *, ended: bool) -> _Seen:
    try:
        job = cluster.get(PYTORCHJOBS, found.job_name)
    except NotFoundError:
        return _Seen(known=True)
    seen = _Seen(known=True, job=job)
    seen.pods = _listed(cluster, PODS, found.labels, "", "pods", notes)
    if ended:
        return seen
    over = is_true(job, "Failed") or is_true(job, "Succeeded")
    if is_queued(job):
        found_workloads = _listed(
            cluster, WORKLOADS, {"kueue.x-k8s.io/job-uid": text(job, "metadata", "uid")}, "", "Kueue's workloads", notes
        )
        seen.workload = found_workloads[0] if found_workloads else None
    if is_true(job, "Failed") or (not over and not is_suspended(job) and len(seen.pods) < num_workers(job)[1]):
        fields = f"involvedObject.uid={text(job, 'metadata', 'uid')}"
        seen.events = _listed(cluster, EVENTS, {}, fields, "events", notes)
    unclear = {name_of(pod) for pod in seen.pods if needs_events(pod) or _was_made_again(pod, job)}
    if unclear and not over:
        fields = "involvedObject.kind=Pod,type!=Normal"
        warnings = _listed(cluster, EVENTS, {}, fields, "events", notes, about=unclear)
        seen.events = [*seen.events, *warnings]
    silent = sorted({text(pod, "spec", "nodeName") for pod in seen.pods if is_silent(pod)} - {""})
    seen.silent_nodes = {node: _why_silent(cluster, node, notes) for node in silent[:MOST_NODES]}
    return seen


def _listed(
    cluster: Cluster,
    kind: str,
    labels: dict[str, str],
    fields: str,
    what: str,
    notes: list[str],
    about: Iterable[str] | None = None,
) -> list[Object]:
    """The objects, without what no status needs (512 pods would take 10 MB); of events those about certain objects."""
    kept = []
    try:
        for item in cluster.list(kind, labels, fields):
            if about is not None and text(item, "involvedObject", "name") not in about:
                continue
            for key in NOT_OURS:
                part(item, "metadata").pop(key, None)
            kept.append(item)
    except NotFoundError:  # no such kind: Kueue is not there
        return []
    except ClusterError as error:
        note = f"{what}: {error.message}"
        if note not in notes:
            notes.append(note)
    return kept


def _was_made_again(pod: Object, job: Object) -> bool:
    """Whether there seems to have been an earlier pod of that name, which its node threw out or lost."""
    made, begun = time_at(pod, "metadata", "creationTimestamp"), time_at(job, "status", "startTime")
    return made is not None and begun is not None and (made - begun).total_seconds() > AT_ONCE


def _why_silent(cluster: Cluster, node: str, notes: list[str]) -> str:
    try:
        ready = condition(cluster.get(NODES, node), "Ready")
    except NotFoundError:
        return "it is gone"
    except ClusterError as error:
        notes.append(f"nodes: {error.message}")
        return ""
    if text(ready, "status") == "True":
        return ""
    return f"not ready since {text(ready, 'lastTransitionTime')}: {text(ready, 'message')}"
