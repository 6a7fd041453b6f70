"""The phase of a run, as each source shows it: the result, the PyTorchJob, the heartbeat."""

from datetime import datetime
from typing import Literal

from cpmbee_job.launch.kube.fields import is_true, text_at, time_at
from cpmbee_job.launch.kube.protocol import Object
from cpmbee_job.launch.runs.durations import age
from cpmbee_job.launch.runs.jobs import is_queued, is_suspended

Phase = Literal["queued", "pending", "preparing", "running", "succeeded", "failed", "cancelled", "lost"]

FRESH = 120.0
"""Maximum age of a live heartbeat, in seconds. Training writes one every 5 s unless the object store fails."""


def result_phase(result: Object) -> Phase:
    """Return the phase of a run that has this `result.json`."""
    state = text_at(result, "state")
    return state if state in ("succeeded", "cancelled") else "failed"  # type: ignore[return-value]


def job_phase(job: Object) -> Phase:
    """Return the phase that the PyTorchJob alone shows. `Failed` takes precedence: the operator may add `Running`."""
    if is_true(job, "Failed"):
        return "failed"
    if is_true(job, "Succeeded"):
        return "succeeded"
    if is_suspended(job):
        return "queued" if is_queued(job) else "pending"
    return "running" if is_true(job, "Running") else "pending"


def is_alive(heartbeat: Object, now: datetime) -> bool:
    """Return whether the heartbeat (`status.json`) is that of a process that trains now."""
    silence = age(time_at(heartbeat, "updated_at"), now)
    return text_at(heartbeat, "state") == "running" and silence is not None and silence < FRESH
