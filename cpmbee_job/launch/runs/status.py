"""What a run is doing and why, from what cluster and store say about it. Pure: nothing here asks anybody."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cpmbee_job.errors import JobFailedError
from cpmbee_job.launch.kube.fields import condition, integer, is_true, name_of, number, part, text, time_at
from cpmbee_job.launch.kube.protocol import Object
from cpmbee_job.launch.runs.containers import duration
from cpmbee_job.launch.runs.jobs import (
    evictions,
    is_queued,
    is_suspended,
    last_failure,
    num_workers,
    why_no_pods,
    why_queued,
)
from cpmbee_job.launch.runs.pods import Cause, PodStatus, describe_pod
from cpmbee_job.run.run import exit_code
from cpmbee_job.spec import JobSpec

Phase = Literal["queued", "pending", "preparing", "running", "succeeded", "failed", "cancelled", "lost"]

FRESH = 120.0
"""Seconds for which a heartbeat means life; it comes every 5 s, unless the store is in trouble."""
SLOW_STEP = 300.0
"""Seconds without a step from which on training may be stuck, where it was not slower than that before."""
RESULT_GRACE = 60.0
"""Seconds that the result may be missing after the job's end."""
WORST_FIRST: tuple[Cause, ...] = Cause.__args__  # type: ignore[attr-defined]


class BestScore(BaseModel):
    model_config = ConfigDict(frozen=True)

    step: int
    loss: float


class RunStatus(BaseModel):
    """What `cpmbee-job status --json` prints. Times are in RFC 3339, UTC."""

    model_config = ConfigDict(frozen=True)

    name: str
    run_id: str
    url: str = Field(description="The run's folder in the store.")
    phase: Phase = Field(
        description="queued: Kueue holds it back. pending: no pod has begun. preparing: the init step, or training is "
        "starting. running: training. lost: neither Kubernetes objects nor a result nor a sign of life."
    )
    ended: bool
    exit_code: int | None = Field(description="What `wait` ends with; null while it has not ended.")
    reason: str | None = Field(description="Why it has ended.")
    problems: tuple[str, ...] = Field(description="What is in its way, in words, worst first.")
    notes: tuple[str, ...] = Field(description="What could not be looked at.")
    step: int | None
    total_steps: int | None
    epoch: int | None
    progress: float | None = Field(description="0 to 1.")
    eta_s: float | None = Field(description="Seconds until the last step, at the pace so far; null unless running.")
    loss: float | None
    tokens_per_s: float | None
    best: BestScore | None = Field(description="The best evaluation.")
    attempt: int | None = Field(description="Number of the world that trains, or was the last to.")
    world_size: int | None = Field(description="Processes in it.")
    restarts: int = Field(description="Of containers, over all pods that are there.")
    workers: int | None = Field(description="Pods asked for.")
    min_workers: int | None = Field(description="Pods that training needs.")
    namespace: str | None
    job: str | None = Field(description="Its PyTorchJob; null where there is none (any more).")
    created_at: str | None = Field(description="When the PyTorchJob was made.")
    updated_at: str | None = Field(description="Last sign of life of training.")
    stepped_at: str | None = Field(description="Last step of training.")
    ended_at: str | None
    pods: tuple[PodStatus, ...] = Field(description="Workers, by index.")

    @property
    def reference(self) -> str:
        return f"{self.name}/{self.run_id}"

    @property
    def arguments(self) -> str:
        """What to type to name it: by the namespace of its PyTorchJob, or by its URL where that is gone."""
        return f"{self.reference} -n {self.namespace}" if self.job and self.namespace else self.url


@dataclass(frozen=True)
class StoreRecord:
    """What the store says about a run."""

    known: bool = True
    """Whether it could be asked: if not, silence is no sign."""
    spec: JobSpec | None = None
    status: dict[str, Any] | None = None
    """`status.json`, the heartbeat."""
    result: dict[str, Any] | None = None


def describe_run(
    *,
    name: str,
    run_id: str,
    url: str,
    job: Object | None,
    pods: Sequence[Object],
    record: StoreRecord,
    now: datetime,
    events: Sequence[Object] = (),
    silent_nodes: dict[str, str] | None = None,
    workload: Object | None = None,
    notes: Sequence[str] = (),
    cluster_known: bool = True,
) -> RunStatus:
    """`events`: of the job and its pods. `silent_nodes`: nodes that don't answer, and why, as far as that is known.
    `workload`: Kueue's object for the job. `cluster_known`: whether the cluster could be asked."""
    by_object: dict[str, list[Object]] = {}
    for event in events:
        by_object.setdefault(text(event, "involvedObject", "name"), []).append(event)
    uids = {name_of(pod): text(pod, "metadata", "uid") for pod in pods}
    described = []
    for pod in pods:
        about = by_object.get(name_of(pod), ())
        its_own = [event for event in about if text(event, "involvedObject", "uid") in ("", uids[name_of(pod)])]
        described.append(describe_pod(pod, its_own, now, silent_nodes or {}))
    described.sort(key=lambda pod: (pod.index is None, pod.index or 0, pod.name))
    view = _View(
        url=url,
        job=job,
        pods=described,
        job_events=by_object.get(name_of(job), []) if job else [],
        evictions=evictions(events, uids, now),
        record=record,
        now=now,
        workload=workload,
    )
    phase, ended, reason, problems = view.explain(cluster_known, f"{name}/{run_id}")
    result, beat = record.result or {}, record.status or {}
    step, total = integer(beat, "step"), integer(beat, "total_steps")
    if result:
        step = integer(result, "steps") if integer(result, "steps") is not None else step
    progress = step / total if step is not None and total else None
    code = None
    if ended:
        known = {"state": text(result, "state"), "exit_code": integer(result, "exit_code")}
        code = exit_code(known) if result else JobFailedError.exit_code
    return RunStatus(
        name=name,
        run_id=run_id,
        url=url,
        phase=phase,
        ended=ended,
        exit_code=code,
        reason=reason,
        problems=tuple(problems),
        notes=tuple(notes),
        step=step,
        total_steps=total,
        epoch=integer(beat, "epoch"),
        progress=None if progress is None else round(min(progress, 1.0), 4),
        eta_s=number(beat, "eta_s") if phase == "running" else None,
        loss=number(beat, "loss"),
        tokens_per_s=number(beat, "tokens_per_s") if phase == "running" else None,
        best=_best(result, beat),
        attempt=integer(beat, "attempt"),
        world_size=integer(beat, "world_size"),
        restarts=sum(pod.restarts for pod in described),
        workers=num_workers(job)[1] if job else record.spec.workers.count if record.spec else None,
        min_workers=view.needed,
        namespace=text(job, "metadata", "namespace") or None,
        job=name_of(job) or None,
        created_at=text(job, "metadata", "creationTimestamp") or None,
        updated_at=text(beat, "updated_at") or None,
        stepped_at=text(beat, "stepped_at") or None,
        ended_at=text(result, "ended_at") or (_job_end(job) if ended else None),
        pods=tuple(described),
    )


_Explanation = tuple[Phase, bool, str | None, list[str]]


@dataclass(frozen=True)
class _View:
    """What both sides say, put together."""

    url: str
    job: Object | None
    pods: list[PodStatus]
    job_events: list[Object]
    evictions: list[str]
    record: StoreRecord
    now: datetime
    workload: Object | None

    @property
    def beat(self) -> Object:
        return self.record.status or {}

    @property
    def needed(self) -> int | None:
        """Pods that training needs."""
        if self.job is not None:
            return num_workers(self.job)[0]
        spec = self.record.spec
        return None if spec is None else spec.workers.min or spec.workers.count

    def explain(self, cluster_known: bool, reference: str) -> _Explanation:
        """Phase, whether it has ended, why, and what is in the way."""
        result = self.record.result
        if result is not None:
            state = text(result, "state")
            phase: Phase = state if state in ("succeeded", "cancelled") else "failed"  # type: ignore[assignment]
            return phase, True, text(result, "reason") or None, []
        if self.job is None:
            return self._without_job(cluster_known, reference)
        if is_true(self.job, "Failed"):
            return self._failed_without_result(self.job)
        if is_true(self.job, "Succeeded"):
            return self._succeeded_without_result(self.job)
        if is_suspended(self.job):
            queued = is_queued(self.job)
            why = why_queued(self.job, self.workload) if queued else "suspended (spec.runPolicy.suspend of its job)"
            return "queued" if queued else "pending", False, None, [why]
        return self._alive()

    def _without_job(self, cluster_known: bool, reference: str) -> _Explanation:
        age = self._age("updated_at")
        state = text(self.beat, "state")
        if state == "running" and age is not None and age < FRESH:
            return "running", False, None, self._stuck()
        if not cluster_known:
            return "lost", False, None, ["the cluster can't be asked, and training gives no sign of life" + _since(age)]
        if not self.record.known:
            return "lost", False, None, ["its PyTorchJob is gone; how it has ended, only the store knows"]
        if not self.url.startswith("s3://"):
            if not self.beat:
                return "preparing", False, None, ["no sign of life yet; there is one when training has begun"]
            return "lost", True, "no result, and no sign of life" + _since(age), []
        if self.beat:
            why = "its PyTorchJob is gone, there is no result" + _since(age, ", last sign of life {} ago")
        else:
            why = "begun, but no PyTorchJob was made for it, or it was deleted before training began"
        return "lost", True, f"{why}; `cpmbee-job resume {reference}` goes on", []

    def _failed_without_result(self, job: Object) -> _Explanation:
        said = text(condition(job, "Failed"), "message") or "the PyTorchJob has failed"
        words = [last_failure(job, self.job_events), *self._pod_problems()]
        first, *others = [word for word in words if word] or [""]
        reason = f"{said}{f'; {first}' if first else ''}"
        if not self.record.known and self._is_recent(job, "Failed"):  # the store may soon tell more
            return "failed", False, None, [reason, *others]
        return "failed", True, reason, others

    def _succeeded_without_result(self, job: Object) -> _Explanation:
        if not self.record.known:
            return "succeeded", False, None, ["its pods ended well; whether there is a result, only the store knows"]
        if self._is_recent(job, "Succeeded"):
            return "running", False, None, ["its pods ended well; waiting for the result"]
        return "failed", True, "its pods ended well, but no result was written", []

    def _is_recent(self, job: Object, end: str) -> bool:
        at = time_at(job, "status", "completionTime") or time_at(condition(job, end), "lastTransitionTime")
        return at is None or (self.now - at).total_seconds() < RESULT_GRACE

    def _alive(self) -> _Explanation:
        assert self.job is not None
        no_pods = why_no_pods(self.job, self.job_events, len(self.pods), self.now)
        problems = [*no_pods, *self._pod_problems(), *self.evictions]
        training = [pod for pod in self.pods if pod.state == "running"]
        if training and not self.record.known:  # no heartbeat to go by
            return "running", False, None, problems
        state = text(self.beat, "state")
        if training and self._beats() and state in ("running", "succeeded", "failed"):  # the end is being written
            return "running", False, None, (self._stuck() if state == "running" else []) + problems
        if training:
            return "preparing", False, None, problems + self._starting(len(training))
        begun = any(pod.state in ("preparing", "restarting", "succeeded") for pod in self.pods)
        return "preparing" if begun else "pending", False, None, problems

    def _pod_problems(self) -> list[str]:
        """What is in the pods' way; those with the same trouble share a line."""
        groups: dict[tuple[Cause, str], list[PodStatus]] = {}
        for pod in self.pods:
            if pod.cause is not None and pod.reason:  # one that has just begun to start has none yet
                # of many crashes one is told: their last lines differ, the reason seldom does
                key = "" if pod.cause in ("crash", "init", "memory", "waiting") else pod.reason
                groups.setdefault((pod.cause, key), []).append(pod)
        worst_first = sorted(groups, key=lambda group: (WORST_FIRST.index(group[0]), -len(groups[group])))
        return [f"{_pod_names(groups[group])}: {groups[group][0].reason}" for group in worst_first]

    def _starting(self, num_running: int) -> list[str]:
        if self.needed is not None and num_running < self.needed:
            return [f"training waits for more workers: {num_running} of at least {self.needed} are running"]
        age = self._age("updated_at") if self._beats() else None
        if text(self.beat, "state") in ("interrupted", "stopped") and age is not None:
            return [f"training was interrupted {duration(age)} ago and starts again"]
        if age is not None and age > FRESH:
            return [f"training has given no sign of life for {duration(age)}"]
        began = time_at(condition(self.job, "Running"), "lastTransitionTime")
        if age is None and began is not None and (self.now - began).total_seconds() > SLOW_STEP:
            since = duration((self.now - began).total_seconds())
            return [f"its workers have been running for {since}, but training has not begun; `logs` shows what they do"]
        return []

    def _stuck(self) -> list[str]:
        """Signs that training hangs though its processes are there."""
        silent, idle = self._age("updated_at"), self._age("stepped_at")
        if silent is not None and silent > FRESH:
            return [f"no sign of life for {duration(silent)}: it hangs, or can't reach the store"]
        step, total, eta = (number(self.beat, key) for key in ("step", "total_steps", "eta_s"))
        pace = eta / (total - step) if eta and total and step is not None and total > step else 0.0
        if idle is None or idle < max(SLOW_STEP, 5 * pace):
            return []
        limit = self.record.spec.train.stall_timeout if self.record.spec else None
        after = "" if limit is None else f"; after {duration(limit)} (train.stall_timeout) its workers start again"
        return [f"stuck: no step for {duration(idle)}{after}"]

    def _beats(self) -> bool:
        """Whether the heartbeat is this job's, not one from before the run was resumed."""
        at, created = time_at(self.beat, "updated_at"), time_at(self.job, "metadata", "creationTimestamp")
        return at is not None and (created is None or at >= created - timedelta(seconds=5))

    def _age(self, key: str) -> float | None:
        at = time_at(self.beat, key)
        return None if at is None else max((self.now - at).total_seconds(), 0.0)


def _since(age: float | None, words: str = " (the last was {} ago)") -> str:
    return "" if age is None else words.format(duration(age))


def _pod_names(pods: list[PodStatus]) -> str:
    """`worker 3`, or how many and which: `12 workers (0, 1, 2, ...)`."""
    shown = [str(pod.index) if pod.index is not None else pod.name for pod in pods]
    if len(pods) == 1:
        return f"worker {shown[0]}"
    return f"{len(pods)} workers ({', '.join(shown[:3])}{', ...' if len(pods) > 3 else ''})"


def _best(result: Object, beat: Object) -> BestScore | None:
    step, loss = integer(beat, "best", "step"), number(beat, "best", "loss")
    scores = part(result, "scores")
    if integer(scores, "best_step") and number(scores, "eval_loss") is not None:
        step, loss = integer(scores, "best_step"), number(scores, "eval_loss")
    return None if step is None or loss is None else BestScore(step=step, loss=loss)


def _job_end(job: Object | None) -> str | None:
    failed = text(condition(job, "Failed"), "lastTransitionTime")
    return text(job, "status", "completionTime") or failed or None
