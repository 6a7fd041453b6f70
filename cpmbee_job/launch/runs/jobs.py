"""Read a job's own state: how many workers it has, why it is suspended, why it has no pods."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from cpmbee_job.launch.kube.fields import condition, integer, object_at, objects_at, one_line, text_at, time_at
from cpmbee_job.launch.kube.protocol import QUEUE_LABEL, Object
from cpmbee_job.launch.runs.containers import why_ended
from cpmbee_job.launch.runs.durations import age, duration

OPERATOR_SECONDS = 30.0
"""Age of a PyTorchJob at which the training operator should have processed it."""


def num_workers(job: Object | None) -> tuple[int, int]:
    """Return (pods that training requires, pods requested)."""
    replicas = object_at(job, "spec", "pytorchReplicaSpecs")
    requested = sum(1 if (count := integer(replicas, kind, "replicas")) is None else count for kind in replicas)
    return integer(job, "spec", "elasticPolicy", "minReplicas") or requested, requested


def is_suspended(job: Object) -> bool:
    """Return whether the PyTorchJob or Job is suspended."""
    return True in (object_at(job, "spec", "runPolicy").get("suspend"), object_at(job, "spec").get("suspend"))


def queue_of(job: Object) -> str:
    """Return the name of the job's Kueue LocalQueue, "" if it has none."""
    return text_at(job, "metadata", "labels", QUEUE_LABEL)


def is_queued(job: Object) -> bool:
    """Return whether the job waits for Kueue."""
    return is_suspended(job) and bool(queue_of(job))


def why_suspended(job: Object, workload: Object | None = None) -> str:
    """Explain why a suspended job does not start, with the message of Kueue's Workload if it can be read."""
    if not is_queued(job):
        return f"suspended (`suspend` of the {text_at(job, 'kind') or 'PyTorchJob'} is true)"
    for kind in ("Evicted", "Admitted", "QuotaReserved"):
        state = condition(workload, kind)
        message = one_line(state, "message")
        if message and (text_at(state, "status") == "True") == (kind == "Evicted"):
            return f"waits in the Kueue LocalQueue {queue_of(job)}: {message}"
    return f"waits in the Kueue LocalQueue {queue_of(job)}"


def why_no_pods(job: Object, events: Sequence[Object], num_pods: int, now: datetime) -> list[str]:
    """Explain from the job's events why the operator does not create some or all of its pods."""
    missing = num_workers(job)[1] - num_pods
    for event in newest_first(events) if missing > 0 else ():
        reason = text_at(event, "reason")
        if reason in ("FailedCreatePod", "FailedCreateService"):
            which = f"{missing} of the pods" if num_pods else "pods"
            return [f"cannot create {which} ({reason}): {why_refused(one_line(event, 'message'))}"]
    waited = age(time_at(job, "metadata", "creationTimestamp"), now)
    if num_pods or objects_at(job, "status", "conditions") or waited is None or waited <= OPERATOR_SECONDS:
        return []
    return [f"the training operator has not processed the PyTorchJob for {duration(waited)}: check that it runs"]


def last_failure(job: Object, events: Sequence[Object]) -> str:
    """Return how the job's last container failed. Of a failed job the operator deletes the pods; the event stays."""
    for event in newest_first(events):
        found = re.match(
            r"Error pod (\S+) container (\S+) exitCode: (\d+) terminated message: ?(.*)",
            text_at(event, "message"),
            re.DOTALL,
        )
        if found:
            ended = {"exitCode": int(found[3]), "message": found[4], "reason": text_at(event, "reason")}
            template = object_at(job, "spec", "pytorchReplicaSpecs", "Worker", "template")
            return f"{pod_label(found[1])}: {why_ended('training', ended, template, {'name': found[2]})}"
    return ""


def evictions(events: Sequence[Object], uids: Mapping[str, str], now: datetime) -> list[str]:
    """Describe evictions of earlier pods with the same names. `uids`: of the present pods, by name.

    The operator replaces evicted pods at once, so that only the events show them.
    """
    lines = []
    for name, uid in uids.items():
        about = [
            event
            for event in newest_first(events)
            if text_at(event, "reason") == "Evicted"
            and text_at(event, "involvedObject", "name") == name
            and text_at(event, "involvedObject", "uid") != uid
        ]
        if about:
            times = sum(integer(event, "count") or 1 for event in about)
            how_often = "once" if times == 1 else f"{times} times"
            since = age(event_time(about[0]), now)
            ago = "" if since is None else f", last {duration(since)} ago"
            lines.append(f"{pod_label(name)} was Evicted {how_often}{ago}: {one_line(about[0], 'message')}")
    return lines


def newest_first(events: Sequence[Object]) -> list[Object]:
    return sorted(events, key=lambda event: event_time(event) or datetime.min.replace(tzinfo=UTC), reverse=True)


def event_time(event: Object) -> datetime | None:
    """Return when the event occurred last."""
    times = (time_at(event, key) for key in ("lastTimestamp", "eventTime", "firstTimestamp"))
    return next((at for at in times if at is not None), None)


def pod_label(pod_name: str) -> str:
    """Return `worker 3` for the pod of worker 3."""
    index = index_in(pod_name)
    return pod_name if index is None else f"worker {index}"


def index_in(pod_name: str) -> int | None:
    """Return the worker's index from the name that the operator gives its pod."""
    found = re.search(r"-worker-(\d+)$", pod_name)
    return int(found[1]) if found else None


def why_refused(message: str) -> str:
    """Return why the API server refuses to create a pod, from an event's message."""
    return re.sub(r'^(Error creating: )?(pods "[^"]*" is forbidden: )?', "", message)
