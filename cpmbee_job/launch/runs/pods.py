"""The state of one pod and, where something is in its way, what, in words."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.fields import condition, integer, is_true, name_of, one_line, part, parts, text, time_at
from cpmbee_job.launch.kube.protocol import INDEX_LABEL, Object
from cpmbee_job.launch.runs import containers
from cpmbee_job.launch.runs.jobs import event_time, newest_first
from cpmbee_job.launch.runs.scheduling import why_unscheduled

PodState = Literal["pending", "preparing", "running", "restarting", "ending", "succeeded", "failed", "lost"]
Cause = Literal[
    "memory", "crash", "init", "config", "image", "volume", "unschedulable", "node", "evicted", "preempted", "waiting"
]  # worst first

SLOW_START = 30.0
"""Seconds that a pod may take to start or to end, beyond what it was given, before that is worth a word."""
STALE_EVENT = 300.0
"""Seconds after which a volume that could not be mounted has been: kubelet would have tried, and complained, again."""


class PodStatus(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    index: int | None = Field(description="Of the worker; null where the pod does not say.")
    state: PodState
    cause: Cause | None = Field(description="What kind of thing is in its way.")
    reason: str | None = Field(description="The same in words, with those of the server.")
    node: str | None
    restarts: int = Field(description="Starts of its containers after the first.")


def describe_pod(pod: Object, events: Sequence[Object], now: datetime, silent_nodes: dict[str, str]) -> PodStatus:
    """`events`: the pod's warnings. `silent_nodes`: nodes that don't answer, and why, as far as that is known."""
    state, cause, reason = _explained(pod, events, now, silent_nodes)
    return PodStatus(
        name=name_of(pod),
        index=index_of(pod),
        state=state,
        cause=cause,
        reason=reason or None,
        node=text(pod, "spec", "nodeName") or None,
        restarts=sum(integer(status, "restartCount") or 0 for status in _container_statuses(pod)),
    )


def index_of(pod: Object) -> int | None:
    """The worker's index, as the operator's label says it."""
    index = text(pod, "metadata", "labels", INDEX_LABEL)
    return int(index) if index.isascii() and index.isdigit() else None


def needs_events(pod: Object) -> bool:
    """Whether only events can tell what this pod waits for: it has a node, and nothing of it has started."""
    return text(pod, "status", "phase") in ("Pending", "") and bool(text(pod, "spec", "nodeName"))


def is_silent(pod: Object) -> bool:
    """Whether the pod's node seems to have stopped answering: its containers run, yet it is not ready."""
    if text(pod, "status", "phase") == "Unknown" or text(pod, "status", "reason") == "NodeLost":
        return True
    statuses = parts(pod, "status", "containerStatuses")
    runs = bool(statuses) and all(status.get("ready") is True and _is_running(status) for status in statuses)
    return runs and condition(pod, "Ready").get("status") in ("False", "Unknown")


_Explanation = tuple[PodState, Cause | None, str]


def _explained(pod: Object, events: Sequence[Object], now: datetime, silent_nodes: dict[str, str]) -> _Explanation:
    phase = text(pod, "status", "phase")
    if phase == "Succeeded":
        return "succeeded", None, ""
    if phase == "Failed":
        return _failed(pod)
    leaves_by = time_at(pod, "metadata", "deletionTimestamp")
    overdue = leaves_by is not None and (now - leaves_by).total_seconds() > SLOW_START
    if is_silent(pod) and (leaves_by is None or overdue):
        node = text(pod, "spec", "nodeName")
        return "lost", "node", f"its node {node} does not answer" + containers.after_colon(silent_nodes.get(node, ""))
    if leaves_by is not None:
        cause, why = _disruption(pod)
        return "ending", cause, f"being deleted{containers.after_colon(why)}"
    if phase != "Running" and not text(pod, "spec", "nodeName"):
        return _unscheduled(pod)
    for status in _in_order(pod, "initContainers", "initContainerStatuses"):
        if integer(status, "state", "terminated", "exitCode") == 0 or _is_sidecar(pod, status):
            continue
        if _is_running(status):
            return "preparing", None, ""
        return _not_running(pod, status, events, now, is_init=True)
    for status in _in_order(pod, "containers", "containerStatuses"):
        if integer(status, "state", "terminated", "exitCode") != 0 and not _is_running(status):
            return _not_running(pod, status, events, now, is_init=False)
    if phase == "Running":
        return "running", None, _earlier_end(pod)
    return _starting(pod, events, now)


def _earlier_end(pod: Object) -> str:
    """How training ended in this pod before it was started again, if it was."""
    for status in _in_order(pod, "containers", "containerStatuses"):
        if ended := part(status, "lastState", "terminated"):
            return f"started again after: {containers.why_ended(_work(pod), ended, pod, status)}"
    return ""


def _not_running(
    pod: Object, status: Object, events: Sequence[Object], now: datetime, *, is_init: bool
) -> _Explanation:
    """Of the first container that does not run."""
    waiting = text(status, "state", "waiting", "reason")
    what = "the init step" if is_init else _work(pod)
    if waiting in containers.IMAGE_REASONS:
        return "pending", "image", containers.why_no_image(status, events)
    if waiting in containers.CONFIG_REASONS:
        return "pending", "config", containers.why_not_set_up(status)
    ended = part(status, "state", "terminated") or part(status, "lastState", "terminated")
    if ended and (waiting == "CrashLoopBackOff" or part(status, "state", "terminated")):
        out_of_memory = containers.is_out_of_memory(ended)
        cause: Cause = "memory" if out_of_memory else "init" if is_init else "crash"
        if text(ended, "reason") in containers.START_REASONS:
            cause = "config"
        again = containers.next_start(status, now)
        return "restarting", cause, containers.why_ended(what, ended, pod, status) + (f"; {again}" if again else "")
    return _starting(pod, events, now)


def _starting(pod: Object, events: Sequence[Object], now: datetime) -> _Explanation:
    """Between its node and its first container: volumes, network, image."""
    for event in newest_first(events):
        at = event_time(event)
        if at is not None and (now - at).total_seconds() > STALE_EVENT:  # tried again since, with more luck
            break
        words = one_line(event, "message")
        if text(event, "reason") in ("FailedMount", "FailedAttachVolume", "FailedMapVolume"):
            return "pending", "volume", f"a volume can't be mounted: {words}"
        if text(event, "reason") in ("FailedCreatePodSandBox", "NetworkNotReady"):
            return "pending", "node", f"the node can't start it: {words}"
    begun = time_at(condition(pod, "PodScheduled"), "lastTransitionTime") or time_at(
        pod, "metadata", "creationTimestamp"
    )
    slow = begun is not None and (now - begun).total_seconds() > SLOW_START
    image = next((text(one, "image") for one in parts(pod, "spec", "containers")), "")
    return "pending", "waiting", f"pulls {image}, or sets up volumes and network" if slow else ""


def _unscheduled(pod: Object) -> _Explanation:
    scheduled = condition(pod, "PodScheduled")
    if text(scheduled, "reason") == "SchedulingGated":
        gates = ", ".join(text(gate, "name") for gate in parts(pod, "spec", "schedulingGates"))
        return "pending", "waiting", f"held back by {gates or 'a scheduling gate'}"
    if text(scheduled, "status") == "False":
        nominated = text(pod, "status", "nominatedNodeName")
        if nominated:
            return "pending", "waiting", f"waits for pods of less priority to leave {nominated}"
        return "pending", "unschedulable", why_unscheduled(pod)
    scheduler = text(pod, "spec", "schedulerName")
    if scheduler not in ("", "default-scheduler"):
        return "pending", "waiting", f"waits for the scheduler {scheduler}"
    return "pending", "waiting", "waits for a node"


def _failed(pod: Object) -> _Explanation:
    cause, why = _disruption(pod)
    if cause is not None:
        return "failed", cause, why
    reason, message = text(pod, "status", "reason"), one_line(pod, "status", "message")
    for list_name, status_name, what in (
        ("initContainers", "initContainerStatuses", "the init step"),
        ("containers", "containerStatuses", _work(pod)),
    ):
        for status in _in_order(pod, list_name, status_name):
            ended = part(status, "state", "terminated")
            if ended and integer(ended, "exitCode") != 0:
                kind: Cause = "memory" if containers.is_out_of_memory(ended) else "crash"
                return "failed", kind, containers.why_ended(what, ended, pod, status)
    return (
        "failed",
        "node" if reason else "crash",
        ": ".join(filter(None, (reason, message))) or "failed without a word",
    )


def _disruption(pod: Object) -> tuple[Cause | None, str]:
    """Why others than its own processes end the pod, if they do."""
    reason, message = text(pod, "status", "reason"), one_line(pod, "status", "message")
    if reason == "Evicted":
        return "evicted", f"evicted by its node: {message}"
    if reason == "Preempting":
        return "preempted", f"preempted: {message}"
    if not is_true(pod, "DisruptionTarget"):
        return None, ""
    target = condition(pod, "DisruptionTarget")
    words = one_line(target, "message")
    node = text(pod, "spec", "nodeName")
    match text(target, "reason"):
        case "PreemptionByScheduler":
            return "preempted", f"preempted by a pod of higher priority{containers.after_colon(words)}"
        case "DeletionByTaintManager":
            return "node", f"its node {node} was lost or drained{containers.after_colon(words)}"
        case "EvictionByEvictionAPI":
            return "evicted", f"evicted from {node}, as a drain does{containers.after_colon(words)}"
        case "DeletionByPodGC":
            return "node", f"its node {node} is gone{containers.after_colon(words)}"
        case other:
            return "evicted", f"ended by its node: {': '.join(filter(None, (words or message or other,)))}"


def _in_order(pod: Object, spec_list: str, status_list: str) -> list[Object]:
    """The containers' statuses in the order of the spec, ours before what others have injected."""
    order = [text(one, "name") for one in parts(pod, "spec", spec_list)]
    ours = (naming.PREPARE_CONTAINER, naming.TRAIN_CONTAINER)

    def rank(status: Object) -> tuple[bool, int]:
        name = text(status, "name")
        injected_main = spec_list == "containers" and name not in ours
        return injected_main, order.index(name) if name in order else len(order)

    return sorted(parts(pod, "status", status_list), key=rank)


def _work(pod: Object) -> str:
    """What its main container does."""
    return text(pod, "metadata", "labels", naming.COMMAND_LABEL) or "training"


def _is_running(status: Object) -> bool:
    return isinstance(part(status, "state").get("running"), dict)


def _is_sidecar(pod: Object, status: Object) -> bool:
    """Whether it is an init container that is to run as long as the pod, and does."""
    names = [text(one, "name") for one in parts(pod, "spec", "initContainers") if one.get("restartPolicy") == "Always"]
    return text(status, "name") in names and _is_running(status)


def _container_statuses(pod: Object) -> list[Object]:
    return [*parts(pod, "status", "initContainerStatuses"), *parts(pod, "status", "containerStatuses")]
