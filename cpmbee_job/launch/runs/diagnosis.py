"""Derive a run's phase, and what is in its way, from what the cluster and the object store contain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cpmbee_job.launch.kube.fields import condition, number, text_at, time_at
from cpmbee_job.launch.kube.protocol import Object
from cpmbee_job.launch.runs.durations import age, duration
from cpmbee_job.launch.runs.jobs import last_failure, why_no_pods, why_suspended
from cpmbee_job.launch.runs.phases import FRESH, Phase, is_alive, job_phase, result_phase
from cpmbee_job.launch.runs.pods import Cause, PodStatus
from cpmbee_job.spec import JobSpec

SLOW_STEP = 300.0
"""Seconds without a step after which training may be stuck, unless its steps were that slow before."""
RESULT_GRACE = 60.0
"""Seconds after the end of the PyTorchJob in which the result may still be missing."""
CLOCK_SKEW = 5.0
"""Seconds by which a heartbeat may seem older than the PyTorchJob that it belongs to."""
WORST_FIRST: tuple[Cause, ...] = Cause.__args__  # type: ignore[attr-defined]
ONE_EXAMPLE = ("crash", "init", "memory", "waiting")
"""Causes of which one pod's reason stands for all: the last lines of crashed pods differ, what is wrong seldom does."""


@dataclass
class ClusterSnapshot:
    """The Kubernetes objects of a run."""

    known: bool = True
    """Whether the API server answered. If not, a missing object means nothing."""
    job: Object | None = None
    """The PyTorchJob."""
    pods: Sequence[Object] = ()
    events: Sequence[Object] = ()
    """Of the PyTorchJob and its pods."""
    silent_nodes: Mapping[str, str] = field(default_factory=dict)
    """Nodes that do not respond, with the reason if it is known."""
    workload: Object | None = None
    """Kueue's Workload of the PyTorchJob."""


@dataclass(frozen=True)
class StoreSnapshot:
    """The documents of a run in the object store."""

    known: bool = True
    """Whether the object store answered. If not, a missing document means nothing."""
    spec: JobSpec | None = None
    heartbeat: dict[str, Any] | None = None
    """`status.json`."""
    result: dict[str, Any] | None = None
    """`result.json`."""


@dataclass(frozen=True)
class Diagnosis:
    phase: Phase
    problems: Sequence[str] = ()
    """What is in the run's way, worst first."""
    ended: bool = False
    reason: str | None = None
    """Why it has ended."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a run at `now`."""

    reference: str
    url: str
    cluster: ClusterSnapshot
    store: StoreSnapshot
    pods: Sequence[PodStatus]
    job_events: Sequence[Object]
    evictions: Sequence[str]
    required_pods: int | None
    now: datetime

    def diagnose(self) -> Diagnosis:
        result, job = self.store.result, self.cluster.job
        if result is not None:
            return Diagnosis(result_phase(result), ended=True, reason=text_at(result, "reason") or None)
        if job is None:
            return self._without_job()
        match phase := job_phase(job):
            case "failed":
                return self._failed_without_result(job)
            case "succeeded":
                return self._succeeded_without_result(job)
            case "queued":
                return Diagnosis(phase, [why_suspended(job, self.cluster.workload)])
        return self._active(job)

    @property
    def _heartbeat(self) -> Object:
        return self.store.heartbeat or {}

    def _age(self, key: str) -> float | None:
        return age(time_at(self._heartbeat, key), self.now)

    def _without_job(self) -> Diagnosis:
        silence = self._age("updated_at")
        no_heartbeat = "no recent heartbeat" + ("" if silence is None else f" (the last was {duration(silence)} ago)")
        if is_alive(self._heartbeat, self.now):
            return Diagnosis("running", self._stuck())
        if not self.cluster.known:
            return Diagnosis("lost", [f"cannot reach the cluster, and there is {no_heartbeat}"])
        if not self.store.known:
            return Diagnosis("lost", ["the PyTorchJob is gone, and the object store with the result cannot be read"])
        if self.url.startswith("s3://"):
            why = "no PyTorchJob was created, or it was deleted before training began"
            if self._heartbeat:
                why = f"the PyTorchJob is gone, and there is no result and {no_heartbeat}"
            resume = f"`cpmbee-job resume {self.reference}` resumes the run"
            return Diagnosis("lost", ended=True, reason=f"{why}; {resume}")
        if self._heartbeat:  # a local run
            return Diagnosis("lost", ended=True, reason=f"no result, and {no_heartbeat}")
        return Diagnosis("preparing", ["no heartbeat yet; the first is written when training begins"])

    def _failed_without_result(self, job: Object) -> Diagnosis:
        message = text_at(condition(job, "Failed"), "message") or "the PyTorchJob failed"
        first, *others = [*filter(None, [last_failure(job, self.job_events), *self._pod_problems()])] or [""]
        reason = "; ".join(filter(None, [message, first]))
        if not self.store.known and self._is_recent(job, "Failed"):  # the object store may soon be readable
            return Diagnosis("failed", [reason, *others])
        return Diagnosis("failed", others, ended=True, reason=reason)

    def _succeeded_without_result(self, job: Object) -> Diagnosis:
        if not self.store.known:
            return Diagnosis("succeeded", ["its pods succeeded, but the object store with the result cannot be read"])
        if self._is_recent(job, "Succeeded"):
            return Diagnosis("running", ["its pods succeeded; waiting for the result"])
        return Diagnosis("failed", ended=True, reason="its pods succeeded, but wrote no result")

    def _is_recent(self, job: Object, end: str) -> bool:
        at = time_at(job, "status", "completionTime") or time_at(condition(job, end), "lastTransitionTime")
        return (age(at, self.now) or 0.0) < RESULT_GRACE

    def _active(self, job: Object) -> Diagnosis:
        no_pods = why_no_pods(job, self.job_events, len(self.pods), self.now)
        problems = [*no_pods, *self._pod_problems(), *self.evictions]
        num_running = sum(pod.state == "running" for pod in self.pods)
        if not num_running:
            begun = any(pod.state in ("preparing", "restarting", "succeeded") for pod in self.pods)
            return Diagnosis("preparing" if begun else "pending", problems)
        if not self.store.known:  # there is no heartbeat to judge by
            return Diagnosis("running", problems)
        state = text_at(self._heartbeat, "state") if self._is_own_heartbeat(job) else ""
        if state == "running":
            return Diagnosis("running", self._stuck() + problems)
        if state in ("succeeded", "failed"):  # the result is being written
            return Diagnosis("running", problems)
        return Diagnosis("preparing", problems + self._why_not_training(job, num_running))

    def _pod_problems(self) -> list[str]:
        """Return one line for all pods that have the same problem, the worst problem first."""
        groups: dict[tuple[Cause, str], list[PodStatus]] = {}
        for pod in self.pods:
            if pod.cause is not None and pod.reason:  # a pod that has only just started to start has no reason yet
                groups.setdefault((pod.cause, "" if pod.cause in ONE_EXAMPLE else pod.reason), []).append(pod)
        worst_first = sorted(groups, key=lambda group: (WORST_FIRST.index(group[0]), -len(groups[group])))
        return [f"{_name_pods(groups[group])}: {groups[group][0].reason}" for group in worst_first]

    def _why_not_training(self, job: Object, num_running: int) -> list[str]:
        if self.required_pods is not None and num_running < self.required_pods:
            return [f"training waits for more workers: {num_running} of at least {self.required_pods} are running"]
        silence = self._age("updated_at") if self._is_own_heartbeat(job) else None
        if silence is not None and text_at(self._heartbeat, "state") in ("interrupted", "stopped"):
            return [f"training was interrupted {duration(silence)} ago and is restarting"]
        if silence is not None and silence > FRESH:
            return [f"training has written no heartbeat for {duration(silence)}"]
        running = age(time_at(condition(job, "Running"), "lastTransitionTime"), self.now)
        if silence is None and running is not None and running > SLOW_STEP:
            return [f"its workers have been running for {duration(running)}, but training has not begun; see `logs`"]
        return []

    def _stuck(self) -> list[str]:
        """Return signs that training hangs although its processes exist."""
        silence, idle = self._age("updated_at"), self._age("stepped_at")
        if silence is not None and silence > FRESH:
            return [f"no heartbeat for {duration(silence)}: training hangs, or cannot reach the object store"]
        step, total, eta = (number(self._heartbeat, key) for key in ("step", "total_steps", "eta_s"))
        pace = eta / (total - step) if eta and total and step is not None and total > step else 0.0
        if idle is None or idle < max(SLOW_STEP, 5 * pace):
            return []
        limit = self.store.spec.train.stall_timeout if self.store.spec else None
        after = "" if limit is None else f"; its workers restart after {duration(limit)} (train.stall_timeout)"
        return [f"stuck: no step for {duration(idle)}{after}"]

    def _is_own_heartbeat(self, job: Object) -> bool:
        """Return whether the heartbeat is that of this PyTorchJob, not one from before the run was resumed."""
        at, created = time_at(self._heartbeat, "updated_at"), time_at(job, "metadata", "creationTimestamp")
        return at is not None and (created is None or (created - at).total_seconds() <= CLOCK_SKEW)


def _name_pods(pods: Sequence[PodStatus]) -> str:
    """Return `worker 3`, or how many and which: `12 workers (0, 1, 2, ...)`."""
    names = [str(pod.index) if pod.index is not None else pod.name for pod in pods]
    if len(pods) == 1:
        return f"worker {names[0]}"
    return f"{len(pods)} workers ({', '.join(names[:3])}{', ...' if len(pods) > 3 else ''})"
