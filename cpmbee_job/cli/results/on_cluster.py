"""`evaluate` and `predict` with --on-cluster: run in a pod, and wait for the results."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from cpmbee_job.cli.cluster.attach import follow_pods, interruptible, kind_of, printer
from cpmbee_job.cli.shared import console
from cpmbee_job.cli.shared.commands import flag, option
from cpmbee_job.cli.shared.options import CLUSTER, ClusterOptions, Timeout
from cpmbee_job.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from cpmbee_job.launch.inference.start import InferenceTask, StartedInference
    from cpmbee_job.launch.kube.protocol import Cluster
    from cpmbee_job.spec import JobSpec, StorageSpec
    from cpmbee_job.store.base import Store


@dataclass(frozen=True)
class OnClusterOptions(ClusterOptions):
    """Whether a pod does the work, and where."""

    on_cluster: Annotated[
        bool, flag("--on-cluster", "Run in a pod, with the settings of --job, else of --delta's run.", CLUSTER)
    ] = False
    job: Annotated[Path | None, option("--job", "JOB.yaml", "Job spec for --on-cluster.", CLUSTER)] = None
    timeout: Timeout = None

    def check(self) -> Self | None:
        """None without --on-cluster. Raises `UsageError` for options that require it."""
        if self.on_cluster:
            return self
        given = {"--job": self.job, "--timeout": self.timeout, "--context": self.context, "--namespace": self.namespace}
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{name} requires --on-cluster")
        return None

    def run_in_pod(self, task: "InferenceTask", settings: "StorageSpec") -> "Store":
        """Start the task in a pod, or find its results. Returns the folder of the results when they are complete."""
        from cpmbee_job.launch.inference.start import start_inference
        from cpmbee_job.spec import load_spec

        spec = load_spec(self.job) if self.job is not None else _spec_of_run(task.delta, settings)
        given = {key: getattr(settings, key) for key in settings.model_fields_set}
        cluster = self.connect(spec.cluster.namespace)
        storage = spec.storage.seen_by_launcher().model_copy(update=given)
        started = start_inference(spec, task, cluster, storage, bar=console.byte_bar, warn=console.warn)
        console.say(f"{started.found.url}: {started.why}")
        if not started.done:
            job = started.found.job_name
            console.say(f"Job {job} in namespace {cluster.namespace}")
            hint = f"repeat the command to wait again, or `kubectl delete job {job} -n {cluster.namespace}` to stop it"
            with interruptible(started.found, cluster, hint):
                _attach(started, task.result, cluster, self.timeout)
        return started.store


def _spec_of_run(delta: str | None, settings: "StorageSpec") -> "JobSpec":
    from cpmbee_job.run.run import Run

    hint = "name a job spec with --job, or set --delta to the s3:// URL of a run's folder"
    if delta is None or not delta.startswith("s3://"):
        raise UsageError("--on-cluster: requires image, resources and object store", hint=hint)
    try:
        return Run.open(re.sub(r"/delta/[^/]+/?$", "", delta), settings).spec
    except NotFoundError as error:
        raise UsageError(f"--on-cluster: --delta: {error.message}", hint=hint) from error


def _attach(started: "StartedInference", key: str, cluster: "Cluster", timeout: float | None) -> None:
    """Wait for the object `key`; print the pod's logs and the changes of its state on stderr."""
    from cpmbee_job.launch.background import begin
    from cpmbee_job.launch.follow.logs import LogSelection
    from cpmbee_job.launch.inference.await_result import wait_for_result
    from cpmbee_job.launch.kube import naming

    found, last = started.found, ""

    def on_state(state: str) -> None:
        nonlocal last
        if kind_of(state) != last:
            last = kind_of(state)
            console.say(f"{found.job_name}: {console.printable(state)}")

    waiting = begin(lambda: wait_for_result(found, started.store, key, cluster, on_state=on_state, timeout=timeout))
    with suppress(NotFoundError):  # the pod ended before its log was read
        selection = LogSelection(containers=(naming.TRAIN_CONTAINER,))
        follow_pods(found, cluster, waiting, selection, printer(console.stderr))
    waiting.result()
