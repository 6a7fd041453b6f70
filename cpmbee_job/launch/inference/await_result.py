"""Wait for the result of an inference's Job, and report its state."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from cpmbee_job.errors import POD_CODES, JobFailedError, PreflightError, UnfinishedError
from cpmbee_job.launch.follow.polling import GracePeriod, poll
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.fields import condition, integer, is_true, name_of, objects_at, one_line, text_at
from cpmbee_job.launch.kube.protocol import EVENTS, JOBS, PODS, Cluster, Object
from cpmbee_job.launch.lifecycle.cluster_jobs import get_job
from cpmbee_job.launch.runs.find import FoundRun
from cpmbee_job.launch.runs.jobs import is_suspended, newest_first, why_refused, why_suspended
from cpmbee_job.launch.runs.pods import describe_pod, needs_events
from cpmbee_job.store.base import Store

AGAIN = "repeat the same command to start it again"


def wait_for_result(
    found: FoundRun,
    store: Store,
    key: str,
    cluster: Cluster,
    *,
    on_state: Callable[[str], None],
    timeout: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Wait until the object `key` exists, which the pod writes last. `on_state` gets the state of the Job at each poll.

    Raises `JobFailedError` if the Job failed (with the exit code of its pod if it is one of ours), or ended without the
    object for one minute; `UnfinishedError` after `timeout` seconds. Failures of cluster or store never end the wait.
    """
    state, grace = "", GracePeriod()
    for now in poll(timeout, clock, pause):
        state = ""
        try:
            if store.info(key) is not None:
                return
            job = get_job(cluster, found.job_name, found.url, kind=JOBS)
            if job is not None and is_true(job, "Failed"):
                raise _failure(found, job, cluster)
            ended = job is None or is_true(job, "Complete")
            if grace.has_passed(now, suspicious=ended):
                end = "is gone" if job is None else "has ended"
                raise JobFailedError(f"the Job {found.job_name} {end}, but {found.url} has no {key}", hint=AGAIN)
            if job is not None and not ended:
                state = _describe(job, found, cluster)
        except PreflightError as error:
            state = f"cannot be observed: {error}"
        if state:
            on_state(state)
    raise UnfinishedError(
        f"the Job {found.job_name} did not end within {timeout or 0:.0f} s" + (f": {state}" if state else ""),
        hint="it continues; repeat the same command to wait again",
    )


def _describe(job: Object, found: FoundRun, cluster: Cluster) -> str:
    if is_suspended(job):
        return why_suspended(job)
    pods = _newest_pods(cluster, found)
    if not pods:
        events = cluster.list(EVENTS, {}, f"involvedObject.uid={text_at(job, 'metadata', 'uid')}")
        refusals = [one for one in newest_first(list(events)) if text_at(one, "reason") == "FailedCreate"]
        if refusals:
            return f"pending: its pod cannot be created: {why_refused(one_line(refusals[0], 'message'))}"
        return "pending"
    pod = pods[0]
    events = iter(())
    if needs_events(pod):
        events = cluster.list(EVENTS, {}, "involvedObject.kind=Pod,type!=Normal")
    about = [one for one in events if text_at(one, "involvedObject", "name") == name_of(pod)]
    status = describe_pod(pod, about, datetime.now(UTC), {})
    return f"{status.state}: {status.reason}" if status.reason else status.state


def _failure(found: FoundRun, job: Object, cluster: Cluster) -> JobFailedError:
    """Return the error of the newest failed pod, which the Job keeps."""
    failed = [pod for pod in _newest_pods(cluster, found) if text_at(pod, "status", "phase") == "Failed"]
    reason, code = one_line(condition(job, "Failed"), "message"), None
    if failed:
        reason = describe_pod(failed[0], (), datetime.now(UTC), {}).reason or reason
        for status in objects_at(failed[0], "status", "containerStatuses"):
            if text_at(status, "name") == naming.TRAIN_CONTAINER:
                code = integer(status, "state", "terminated", "exitCode")
    return JobFailedError(
        f"the Job {found.job_name} failed: {reason}", hint=AGAIN, exit_code=code if code in POD_CODES else None
    )


def _newest_pods(cluster: Cluster, found: FoundRun) -> list[Object]:
    pods = cluster.list(PODS, found.labels)
    return sorted(pods, key=lambda pod: text_at(pod, "metadata", "creationTimestamp"), reverse=True)
