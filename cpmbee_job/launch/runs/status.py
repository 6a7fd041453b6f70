"""The status of a run, as `status --json` prints it. Pure: asks neither the cluster nor the object store."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from cpmbee_job.errors import JobFailedError
from cpmbee_job.launch.kube.fields import condition, integer, name_of, number, object_at, text_at
from cpmbee_job.launch.kube.protocol import Object
from cpmbee_job.launch.runs.diagnosis import ClusterSnapshot, Evidence, StoreSnapshot
from cpmbee_job.launch.runs.jobs import evictions, num_workers
from cpmbee_job.launch.runs.phases import Phase
from cpmbee_job.launch.runs.pods import PodStatus, describe_pod
from cpmbee_job.run.run import exit_code


class BestScore(BaseModel):
    model_config = ConfigDict(frozen=True)

    step: int
    loss: float


class RunStatus(BaseModel):
    """What `cpmbee-job status --json` prints. Times are in RFC 3339, UTC."""

    model_config = ConfigDict(frozen=True)

    name: str
    run_id: str
    url: str = Field(description="The run's folder in the object store.")
    phase: Phase = Field(
        description="queued: waits for Kueue. pending: no pod has started. preparing: the init step runs, or training "
        "starts. running: training. lost: there is no PyTorchJob, no result and no recent heartbeat."
    )
    ended: bool
    exit_code: int | None = Field(description="Exit code of `wait`; null until the run has ended.")
    reason: str | None = Field(description="Why the run has ended.")
    problems: tuple[str, ...] = Field(description="What is in the run's way, worst first.")
    notes: tuple[str, ...] = Field(description="What could not be read.")
    step: int | None
    total_steps: int | None
    epoch: int | None
    progress: float | None = Field(description="0 to 1.")
    eta_s: float | None = Field(description="Estimated seconds to the last step; null unless running.")
    loss: float | None
    tokens_per_s: float | None
    best: BestScore | None = Field(description="The best evaluation.")
    attempt: int | None = Field(description="Number of the current or last attempt to train.")
    world_size: int | None = Field(description="Processes of that attempt.")
    restarts: int = Field(description="Container restarts of all present pods.")
    workers: int | None = Field(description="Pods requested.")
    min_workers: int | None = Field(description="Pods that training requires.")
    namespace: str | None
    job: str | None = Field(description="Name of the PyTorchJob; null if there is none.")
    created_at: str | None = Field(description="When the PyTorchJob was created.")
    updated_at: str | None = Field(description="Last heartbeat of training.")
    stepped_at: str | None = Field(description="Last step of training.")
    ended_at: str | None
    pods: tuple[PodStatus, ...] = Field(description="Workers, by index.")

    @property
    def reference(self) -> str:
        return f"{self.name}/{self.run_id}"

    @property
    def arguments(self) -> str:
        """Arguments that name the run to a command: with the namespace of its PyTorchJob, or its URL without one."""
        return f"{self.reference} -n {self.namespace}" if self.job and self.namespace else self.url


def describe_run(
    name: str,
    run_id: str,
    url: str,
    cluster: ClusterSnapshot,
    store: StoreSnapshot,
    *,
    now: datetime,
    notes: Sequence[str] = (),
) -> RunStatus:
    """Describe a run. `notes`: what could not be read."""
    job, result, heartbeat = cluster.job, store.result or {}, store.heartbeat or {}
    evidence = _evidence(f"{name}/{run_id}", url, cluster, store, now)
    diagnosis = evidence.diagnose()
    is_running = diagnosis.phase == "running"
    step, total = integer(heartbeat, "step"), integer(heartbeat, "total_steps")
    if (final_step := integer(result, "steps")) is not None:
        step = final_step
    code = job_end = None
    if diagnosis.ended:
        failed = text_at(condition(job, "Failed"), "lastTransitionTime")
        job_end = text_at(job, "status", "completionTime") or failed or None
        known = {"state": text_at(result, "state"), "exit_code": integer(result, "exit_code")}
        code = exit_code(known) if result else JobFailedError.exit_code
    return RunStatus(
        name=name,
        run_id=run_id,
        url=url,
        **vars(diagnosis),
        exit_code=code,
        notes=tuple(notes),
        step=step,
        total_steps=total,
        epoch=integer(heartbeat, "epoch"),
        progress=round(min(step / total, 1.0), 4) if step is not None and total else None,
        eta_s=number(heartbeat, "eta_s") if is_running else None,
        loss=number(heartbeat, "loss"),
        tokens_per_s=number(heartbeat, "tokens_per_s") if is_running else None,
        best=_best(result, heartbeat),
        attempt=integer(heartbeat, "attempt"),
        world_size=integer(heartbeat, "world_size"),
        restarts=sum(pod.restarts for pod in evidence.pods),
        workers=num_workers(job)[1] if job else store.spec.workers.count if store.spec else None,
        min_workers=evidence.required_pods,
        namespace=text_at(job, "metadata", "namespace") or None,
        job=name_of(job) or None,
        created_at=text_at(job, "metadata", "creationTimestamp") or None,
        updated_at=text_at(heartbeat, "updated_at") or None,
        stepped_at=text_at(heartbeat, "stepped_at") or None,
        ended_at=text_at(result, "ended_at") or job_end,
        pods=tuple(evidence.pods),
    )


def _evidence(reference: str, url: str, cluster: ClusterSnapshot, store: StoreSnapshot, now: datetime) -> Evidence:
    events: dict[str, list[Object]] = {}
    for event in cluster.events:
        events.setdefault(text_at(event, "involvedObject", "name"), []).append(event)
    uids = {name_of(pod): text_at(pod, "metadata", "uid") for pod in cluster.pods}
    pods = []
    for pod in cluster.pods:
        about = events.get(name_of(pod), ())
        own = [event for event in about if text_at(event, "involvedObject", "uid") in ("", uids[name_of(pod)])]
        pods.append(describe_pod(pod, own, now, cluster.silent_nodes))
    required = None if store.spec is None else store.spec.workers.min or store.spec.workers.count
    return Evidence(
        reference=reference,
        url=url,
        cluster=cluster,
        store=store,
        pods=sorted(pods, key=lambda pod: (pod.index is None, pod.index or 0, pod.name)),
        job_events=events.get(name_of(cluster.job), ()) if cluster.job else (),
        evictions=evictions(cluster.events, uids, now),
        required_pods=required if cluster.job is None else num_workers(cluster.job)[0],
        now=now,
    )


def _best(result: Object, heartbeat: Object) -> BestScore | None:
    """Return the best score of the result if it has one, else of the heartbeat."""
    step, loss = integer(heartbeat, "best", "step"), number(heartbeat, "best", "loss")
    scores = object_at(result, "scores")
    if integer(scores, "best_step") and number(scores, "eval_loss") is not None:
        step, loss = integer(scores, "best_step"), number(scores, "eval_loss")
    return None if step is None or loss is None else BestScore(step=step, loss=loss)
