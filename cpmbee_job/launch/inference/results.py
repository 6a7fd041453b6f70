"""Waits for what an inference's Job leaves in the store, and says what is in its way."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from cpmbee_job.errors import POD_CODES, JobFailedError, NotFoundError, PreflightError, UnfinishedError
from cpmbee_job.launch.follow.wait import GRACE, INTERVALS
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.fields import condition, integer, is_true, name_of, one_line, parts, text
from cpmbee_job.launch.kube.protocol import EVENTS, JOBS, PODS, Cluster, Object
from cpmbee_job.launch.runs.find import FoundRun
from cpmbee_job.launch.runs.jobs import is_suspended, newest_first, why_refused, why_suspended
from cpmbee_job.launch.runs.pods import describe_pod, needs_events
from cpmbee_job.store.base import Store


def wait_for_result(
    found: FoundRun,
    store: Store,
    key: str,
    cluster: Cluster,
    *,
    on_words: Callable[[str], None],
    timeout: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Until the object `key`, which the pod writes last, is there. `on_words` gets how the Job is at every look.

    Raises `JobFailedError` for a Job that has failed (with the exit code of its pod where that is one of ours), or of
    which nothing is left for a minute; `UnfinishedError` after `timeout` seconds. Trouble with cluster or store never
    ends it.
    """
    began, interval = clock(), INTERVALS[0]
    gone_since: float | None = None
    while True:
        now, words = clock(), ""
        try:
            if store.info(key) is not None:
                return
            job = _get_job(cluster, found.job_name)
            ended = job is None or is_true(job, "Complete")
            gone_since = None if not ended else now if gone_since is None else gone_since
            if job is not None and is_true(job, "Failed"):
                raise _failure(found, job, cluster)
            if gone_since is not None and now - gone_since >= GRACE:
                raise JobFailedError(
                    f"the Job {found.job_name} {'is gone' if job is None else 'has ended'}, but in {found.url} there "
                    f"is no {key}",
                    hint="the same command again begins it again",
                )
            if job is not None and not ended:
                words = _how_it_is(job, found, cluster)
                on_words(words)
        except PreflightError as error:
            words = f"it can't be looked at: {error}"
            on_words(words)
        left = float("inf") if timeout is None else began + timeout - now
        if left <= 0:
            raise UnfinishedError(
                f"the Job {found.job_name} has not ended after {timeout:.0f} s" + (f": {words}" if words else ""),
                hint="it goes on; the same command waits for it again",
            )
        pause(min(interval, left))
        interval = min(interval * 1.25, INTERVALS[1])


def _get_job(cluster: Cluster, name: str) -> Object | None:
    try:
        return cluster.get(JOBS, name)
    except NotFoundError:
        return None


def _how_it_is(job: Object, found: FoundRun, cluster: Cluster) -> str:
    if is_suspended(job):
        return why_suspended(job)
    pods = _newest_first(cluster, found)
    if not pods:
        events = cluster.list(EVENTS, {}, f"involvedObject.uid={text(job, 'metadata', 'uid')}")
        refusals = [one for one in newest_first(list(events)) if text(one, "reason") == "FailedCreate"]
        if refusals:
            return f"pending: its pod can't be made: {why_refused(one_line(refusals[0], 'message'))}"
        return "pending"
    pod = pods[0]
    events = iter(())
    if needs_events(pod):
        events = cluster.list(EVENTS, {}, "involvedObject.kind=Pod,type!=Normal")
    about = [one for one in events if text(one, "involvedObject", "name") == name_of(pod)]
    status = describe_pod(pod, about, datetime.now(UTC), {})
    return f"{status.state}: {status.reason}" if status.reason else status.state


def _failure(found: FoundRun, job: Object, cluster: Cluster) -> JobFailedError:
    """Why, by the pod that failed last, which the Job keeps."""
    failed = [pod for pod in _newest_first(cluster, found) if text(pod, "status", "phase") == "Failed"]
    reason, code = one_line(condition(job, "Failed"), "message"), None
    if failed:
        reason = describe_pod(failed[0], (), datetime.now(UTC), {}).reason or reason
        for status in parts(failed[0], "status", "containerStatuses"):
            if text(status, "name") == naming.TRAIN_CONTAINER:
                code = integer(status, "state", "terminated", "exitCode")
    return JobFailedError(
        f"the Job {found.job_name} has failed: {reason}",
        hint="the same command again begins it again",
        exit_code=code if code in POD_CODES else None,
    )


def _newest_first(cluster: Cluster, found: FoundRun) -> list[Object]:
    pods = cluster.list(PODS, found.labels)
    return sorted(pods, key=lambda pod: text(pod, "metadata", "creationTimestamp"), reverse=True)
