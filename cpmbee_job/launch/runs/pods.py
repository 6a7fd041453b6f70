"""Describe one pod: its state and, if something is in its way, the cause."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.fields import (
    condition,
    integer,
    is_true,
    name_of,
    object_at,
    objects_at,
    one_line,
    text_at,
    time_at,
)
from cpmbee_job.launch.kube.protocol import GPU_PRODUCT_LABEL, INDEX_LABEL, Object
from cpmbee_job.launch.runs import containers
from cpmbee_job.launch.runs.containers import after_colon
from cpmbee_job.launch.runs.durations import age
from cpmbee_job.launch.runs.jobs import event_time, newest_first
from cpmbee_job.spec.cluster import RESOURCE_KEYS

PodState = Literal["pending", "preparing", "running", "restarting", "ending", "succeeded", "failed", "lost"]
Cause = Literal[
    "memory", "crash", "init", "config", "image", "volume", "unschedulable", "node", "evicted", "preempted", "waiting"
]  # worst first

SLOW_START = 30.0
"""Seconds that a pod may take to start, or to end after its grace period, before that is reported."""
STALE_EVENT = 300.0
"""Age in seconds from which a mount failure is over: kubelet would have retried, and reported it again."""
MOUNT_EVENTS = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")
NODE_EVENTS = ("FailedCreatePodSandBox", "NetworkNotReady")
DISRUPTIONS: dict[str, tuple[Cause, str]] = {
    "PreemptionByScheduler": ("preempted", "preempted by a pod of higher priority"),
    "DeletionByTaintManager": ("node", "its node was lost or drained"),
    "EvictionByEvictionAPI": ("evicted", "evicted from its node, for example by a drain"),
    "DeletionByPodGC": ("node", "its node is gone"),
}
"""By the reason of the condition DisruptionTarget."""
INIT_STEP = ("initContainers", "initContainerStatuses")
MAIN_STEP = ("containers", "containerStatuses")


class PodStatus(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    index: int | None = Field(description="Index of the worker; null if the pod has no such label.")
    state: PodState
    cause: Cause | None = Field(description="Kind of problem that the pod has.")
    reason: str | None = Field(description="The problem as text, with the messages of Kubernetes.")
    node: str | None
    restarts: int = Field(description="Restarts of the pod's containers.")


def describe_pod(pod: Object, events: Sequence[Object], now: datetime, silent_nodes: Mapping[str, str]) -> PodStatus:
    """Describe a pod. `events`: its warnings. `silent_nodes`: nodes that do not respond, and why if it is known."""
    state, cause, reason = _explain(pod, events, now, silent_nodes)
    statuses = [status for _, list_name in (INIT_STEP, MAIN_STEP) for status in objects_at(pod, "status", list_name)]
    return PodStatus(
        name=name_of(pod),
        index=index_of(pod),
        state=state,
        cause=cause,
        reason=reason or None,
        node=text_at(pod, "spec", "nodeName") or None,
        restarts=sum(integer(status, "restartCount") or 0 for status in statuses),
    )


def index_of(pod: Object) -> int | None:
    """Return the worker's index from the training operator's label."""
    index = text_at(pod, "metadata", "labels", INDEX_LABEL)
    return int(index) if index.isascii() and index.isdigit() else None


def needs_events(pod: Object) -> bool:
    """Return whether only events can tell what the pod waits for: it has a node, and no container has started."""
    return text_at(pod, "status", "phase") in ("Pending", "") and bool(text_at(pod, "spec", "nodeName"))


def is_silent(pod: Object) -> bool:
    """Return whether the pod's node seems to have stopped responding: its containers run, but the pod is not ready."""
    if text_at(pod, "status", "phase") == "Unknown" or text_at(pod, "status", "reason") == "NodeLost":
        return True
    statuses = objects_at(pod, "status", "containerStatuses")
    runs = bool(statuses) and all(status.get("ready") is True and _is_running(status) for status in statuses)
    return runs and condition(pod, "Ready").get("status") in ("False", "Unknown")


_Explanation = tuple[PodState, Cause | None, str]


def _explain(pod: Object, events: Sequence[Object], now: datetime, silent_nodes: Mapping[str, str]) -> _Explanation:
    phase, node = text_at(pod, "status", "phase"), text_at(pod, "spec", "nodeName")
    if phase == "Succeeded":
        return "succeeded", None, ""
    if phase == "Failed":
        return _failed(pod)
    overdue = age(time_at(pod, "metadata", "deletionTimestamp"), now)  # that timestamp includes the grace period
    if is_silent(pod) and (overdue is None or overdue > SLOW_START):
        return "lost", "node", f"node {node} does not respond{after_colon(silent_nodes.get(node, ''))}"
    if overdue is not None:
        cause, why = _disruption(pod)
        return "ending", cause, f"Terminating{after_colon(why)}"
    if phase != "Running" and not node:
        return _unscheduled(pod)
    for status in _statuses(pod, *INIT_STEP):
        if integer(status, "state", "terminated", "exitCode") == 0 or _is_sidecar(pod, status):
            continue
        if _is_running(status):
            return "preparing", None, ""
        return _not_running(pod, status, events, now, is_init=True)
    for status in _statuses(pod, *MAIN_STEP):
        if integer(status, "state", "terminated", "exitCode") != 0 and not _is_running(status):
            return _not_running(pod, status, events, now, is_init=False)
    if phase == "Running":
        return "running", None, _why_restarted(pod)
    return _starting(pod, events, now)


def _why_restarted(pod: Object) -> str:
    """Return how the pod's main container ended before it was restarted, "" if it never was."""
    for status in _statuses(pod, *MAIN_STEP):
        if ended := object_at(status, "lastState", "terminated"):
            return f"restarted after: {containers.why_ended(_work(pod), ended, pod, status)}"
    return ""


def _not_running(
    pod: Object, status: Object, events: Sequence[Object], now: datetime, *, is_init: bool
) -> _Explanation:
    """Explain the first container that does not run."""
    waiting = text_at(status, "state", "waiting", "reason")
    if waiting in containers.IMAGE_REASONS:
        return "pending", "image", containers.why_no_image(status, events)
    if waiting in containers.CONFIG_REASONS:
        missing = one_line(status, "state", "waiting", "message")  # for example a Secret, a key, a user other than root
        what = f"cannot create container {text_at(status, 'name')} ({waiting})"
        return "pending", "config", what + after_colon(missing)
    ended = object_at(status, "state", "terminated")
    if waiting == "CrashLoopBackOff":
        ended = ended or object_at(status, "lastState", "terminated")
    if not ended:
        return _starting(pod, events, now)
    cause: Cause = "memory" if containers.is_out_of_memory(ended) else "init" if is_init else "crash"
    if text_at(ended, "reason") in containers.START_REASONS:
        cause = "config"
    why = containers.why_ended("the init step" if is_init else _work(pod), ended, pod, status)
    return "restarting", cause, "; ".join(filter(None, (why, containers.next_restart(status, now))))


def _starting(pod: Object, events: Sequence[Object], now: datetime) -> _Explanation:
    """Explain the time between scheduling and the first container: volumes, network, image."""
    for event in newest_first(events):
        if (age(event_time(event), now) or 0) > STALE_EVENT:
            break
        reason, message = text_at(event, "reason"), one_line(event, "message")
        if reason in MOUNT_EVENTS:
            return "pending", "volume", f"cannot mount a volume ({reason}): {message}"
        if reason in NODE_EVENTS:
            return "pending", "node", f"the node cannot start the pod ({reason}): {message}"
    begun = time_at(condition(pod, "PodScheduled"), "lastTransitionTime")
    waited = age(begun or time_at(pod, "metadata", "creationTimestamp"), now)
    image = next((text_at(one, "image") for one in objects_at(pod, "spec", "containers")), "")
    slow = waited is not None and waited > SLOW_START
    return "pending", "waiting", f"pulling image {image}, or setting up volumes and network" if slow else ""


def _unscheduled(pod: Object) -> _Explanation:
    scheduled = condition(pod, "PodScheduled")
    if text_at(scheduled, "reason") == "SchedulingGated":
        gates = ", ".join(text_at(gate, "name") for gate in objects_at(pod, "spec", "schedulingGates"))
        return "pending", "waiting", f"SchedulingGated{f' by {gates}' if gates else ''}"
    if text_at(scheduled, "status") == "False":
        if nominated := text_at(pod, "status", "nominatedNodeName"):
            return "pending", "waiting", f"waits for preempted pods to leave node {nominated}"
        return "pending", "unschedulable", _why_unscheduled(pod)
    scheduler = text_at(pod, "spec", "schedulerName")
    if scheduler not in ("", "default-scheduler"):
        return "pending", "waiting", f"waits for the scheduler {scheduler}"
    return "pending", "waiting", "waits for the scheduler"


def _why_unscheduled(pod: Object) -> str:
    """Return text like `Unschedulable: 0/3 nodes are available: 3 Insufficient cpu (8 requested, workers.cpu)`."""
    message = one_line(condition(pod, "PodScheduled"), "message")
    # The rest of the message is about preemption, which would not help either.
    message = re.split(r"\.? (?:preemption:|no new claims)|\.$", message)[0]
    if claim := re.search(r'persistentvolumeclaim "[^"]*" not found', message):
        return f"Unschedulable: {claim[0]} (cluster.cache_claim)"
    message = re.sub(
        r"(?<=\d )(Insufficient .+?|node\(s\) .+?)(?=, \d+ |$)", lambda found: _explain_shortage(found[0], pod), message
    )
    return f"Unschedulable: {message}" if message else "Unschedulable"


def _explain_shortage(reason: str, pod: Object) -> str:
    """Append what the pod requests, and the keys of the spec, to one reason of the scheduler."""
    details = []
    if resource := reason.removeprefix("Insufficient ") if reason.startswith("Insufficient ") else "":
        containers = objects_at(pod, "spec", "containers")
        amounts = (text_at(one, "resources", kind, resource) for one in containers for kind in ("requests", "limits"))
        details += [f"{amount} requested" for amount in amounts if amount][:1]
        details.append(RESOURCE_KEYS.get(resource, "workers.gpus" if "gpu" in resource else "workers.resources"))
    elif "untolerated taint" in reason:
        details.append("cluster.tolerations")
    elif "node affinity/selector" in reason:
        selector = object_at(pod, "spec", "nodeSelector")
        details += [f"{label}={text_at(selector, label)}" for label in selector]
        details += ["workers.gpu_product"] * (GPU_PRODUCT_LABEL in selector)
        details += ["cluster.node_selector"] * any(label != GPU_PRODUCT_LABEL for label in selector)
        details += ["cluster.affinity"] * bool(object_at(pod, "spec", "affinity", "nodeAffinity"))
    return f"{reason} ({', '.join(details)})" if details else reason


def _failed(pod: Object) -> _Explanation:
    cause, why = _disruption(pod)
    if cause is not None:
        return "failed", cause, why
    for step, what in ((INIT_STEP, "the init step"), (MAIN_STEP, _work(pod))):
        for status in _statuses(pod, *step):
            ended = object_at(status, "state", "terminated")
            if ended and integer(ended, "exitCode") != 0:
                kind: Cause = "memory" if containers.is_out_of_memory(ended) else "crash"
                return "failed", kind, containers.why_ended(what, ended, pod, status)
    reason, message = text_at(pod, "status", "reason"), one_line(pod, "status", "message")
    why = ": ".join(filter(None, (reason, message))) or "failed, no reason given"
    return "failed", "node" if reason else "crash", why


def _disruption(pod: Object) -> tuple[Cause | None, str]:
    """Explain why something other than the pod's own processes ends it; (None, "") if nothing does."""
    reason, message = text_at(pod, "status", "reason"), one_line(pod, "status", "message")
    if reason == "Evicted":
        return "evicted", f"Evicted by its node: {message}"
    if reason == "Preempting":
        return "preempted", f"Preempting: {message}"
    if not is_true(pod, "DisruptionTarget"):
        return None, ""
    target = condition(pod, "DisruptionTarget")
    reason, message = text_at(target, "reason"), one_line(target, "message") or message
    cause, why = DISRUPTIONS.get(reason, ("evicted", "terminated by its node"))
    return cause, f"{why} ({reason}){after_colon(message)}"


def _statuses(pod: Object, spec_list: str, status_list: str) -> list[Object]:
    """Return the container statuses in the order of the spec, our main container before injected ones."""
    order = [text_at(one, "name") for one in objects_at(pod, "spec", spec_list)]

    def rank(status: Object) -> tuple[bool, int]:
        name = text_at(status, "name")
        injected = spec_list == "containers" and name != naming.TRAIN_CONTAINER
        return injected, order.index(name) if name in order else len(order)

    return sorted(objects_at(pod, "status", status_list), key=rank)


def _work(pod: Object) -> str:
    """Return what the pod's main container does."""
    return text_at(pod, "metadata", "labels", naming.COMMAND_LABEL) or "training"


def _is_running(status: Object) -> bool:
    return isinstance(object_at(status, "state").get("running"), dict)


def _is_sidecar(pod: Object, status: Object) -> bool:
    """Return whether it is an init container that runs beside the others (`restartPolicy: Always`)."""
    init = objects_at(pod, "spec", "initContainers")
    names = [text_at(one, "name") for one in init if one.get("restartPolicy") == "Always"]
    return text_at(status, "name") in names and _is_running(status)
