"""A PyTorchJob's own state: how many workers it wants, why it waits, why it has no pods."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from cpmbee_job.launch.kube.fields import condition, integer, one_line, part, parts, text, time_at
from cpmbee_job.launch.kube.protocol import QUEUE_LABEL, Object
from cpmbee_job.launch.runs.containers import duration, why_ended

UNSEEN = 30.0
"""Seconds after which the operator should have looked at a new job."""


def num_workers(job: Object | None) -> tuple[int, int]:
    """(pods that training needs, pods asked for)."""
    replicas = part(job, "spec", "pytorchReplicaSpecs")
    wanted = sum(1 if (count := integer(replicas, kind, "replicas")) is None else count for kind in replicas)
    return integer(job, "spec", "elasticPolicy", "minReplicas") or wanted, wanted


def is_suspended(job: Object) -> bool:
    return part(job, "spec", "runPolicy").get("suspend") is True


def queue_of(job: Object) -> str:
    return text(job, "metadata", "labels", QUEUE_LABEL)


def is_queued(job: Object) -> bool:
    """Whether Kueue holds it back."""
    return is_suspended(job) and bool(queue_of(job))


def why_queued(job: Object, workload: Object | None) -> str:
    """With the words of Kueue's own object where it may be read."""
    words = f"waits in Kueue's queue {queue_of(job)}"
    if workload is None:
        return words
    for kind in ("Evicted", "Admitted", "QuotaReserved"):
        state = condition(workload, kind)
        said = one_line(state, "message")
        if said and (text(state, "status") == "True") == (kind == "Evicted"):
            return f"{words}: {said}"
    return words


def why_no_pods(job: Object, events: Sequence[Object], num_pods: int, now: datetime) -> list[str]:
    """Why the operator makes none, or not all, of the pods, by the job's events."""
    missing = num_workers(job)[1] - num_pods
    said = [one for one in newest_first(events) if text(one, "reason") in ("FailedCreatePod", "FailedCreateService")]
    if missing > 0 and said:
        many = f"{missing} of its pods can't be made" if num_pods else "its pods can't be made"
        return [f"{many}: {why_refused(one_line(said[0], 'message'))}"]
    created = time_at(job, "metadata", "creationTimestamp")
    if not num_pods and not parts(job, "status", "conditions") and created is not None:
        age = (now - created).total_seconds()
        if age > UNSEEN:
            return [f"the training operator has not looked at it for {duration(age)}: does it run?"]
    return []


def last_failure(job: Object, events: Sequence[Object]) -> str:
    """How the last of its containers failed: the operator deletes the pods of a job that fails, and leaves an event."""
    for event in newest_first(events):
        found = re.match(
            r"Error pod (\S+) container (\S+) exitCode: (\d+) terminated message: ?(.*)",
            text(event, "message"),
            re.DOTALL,
        )
        if found:
            ended = {"exitCode": int(found[3]), "message": found[4], "reason": text(event, "reason")}
            template = part(job, "spec", "pytorchReplicaSpecs", "Worker", "template")
            words = why_ended("training", ended, template, {"name": found[2]})
            return f"{pod_label(found[1])}: {words}"
    return ""


def evictions(events: Sequence[Object], uids: Mapping[str, str], now: datetime) -> list[str]:
    """What nodes did to earlier pods of the same names (`uids`: of those that are there): the operator makes new
    ones at once, so that nothing but the events remembers them."""
    lines = []
    for name, uid in uids.items():
        about = [
            event
            for event in newest_first(events)
            if text(event, "reason") == "Evicted"
            and text(event, "involvedObject", "name") == name
            and text(event, "involvedObject", "uid") != uid
        ]
        if about:
            times = sum(integer(event, "count") or 1 for event in about)
            how_often = "before" if times == 1 else f"{times} times"
            ago = f", last {duration((now - at).total_seconds())} ago" if (at := event_time(about[0])) else ""
            said = one_line(about[0], "message")
            lines.append(f"{pod_label(name)} was evicted {how_often}{ago}: {said}")
    return lines


def newest_first(events: Sequence[Object]) -> list[Object]:
    return sorted(events, key=lambda event: event_time(event) or datetime.min.replace(tzinfo=UTC), reverse=True)


def event_time(event: Object) -> datetime | None:
    known = (time_at(event, key) for key in ("lastTimestamp", "eventTime", "firstTimestamp"))
    return next((at for at in known if at is not None), None)


def pod_label(pod_name: str) -> str:
    """`worker 3` for a pod of that index."""
    index = index_in(pod_name)
    return pod_name if index is None else f"worker {index}"


def index_in(pod_name: str) -> int | None:
    """The worker's index, from the name that the operator gives its pod."""
    found = re.search(r"-worker-(\d+)$", pod_name)
    return int(found[1]) if found else None


def why_refused(said: str) -> str:
    """An API server's refusal of a pod, in terms of the spec where it is a known one."""
    words = said.removeprefix("Error creating: ")
    words = re.sub(r'^pods "[^"]*" is forbidden: ', "", words)
    quota = re.search(r"exceeded quota: (\S+), requested: (\S+), used: (\S+), limited: (\S+)", words)
    if quota:
        used, limited = _amounts(quota[3]), _amounts(quota[4])
        asked = [
            f"{amount} {resource} asked for, {used.get(resource, '?')} of {limited.get(resource, '?')} in use"
            for resource, amount in _amounts(quota[2]).items()
        ]
        return f"quota {quota[1]} of the namespace is exhausted: {'; '.join(asked)}"
    security = re.search(r'violates PodSecurity "([^"]*)": (.*)', words)
    if security:
        return f"the namespace's Pod Security standard {security[1]} refuses them: {security[2]}"
    if "failed quota" in words:
        return f"a quota of the namespace wants what the pod does not say: {words}"
    return words


def _amounts(text_of_pairs: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text_of_pairs.split(",") if "=" in pair)
