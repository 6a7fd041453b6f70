"""Start `evaluate` or `predict` in a pod, or find an earlier identical request.

A digest of the request names the Job and its folder in the store, so that repeating the request finds both. A failed
Job is started again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cpmbee_job
from cpmbee_job import documents
from cpmbee_job.errors import CpmbeeError, SpecError
from cpmbee_job.launch.inference.job_manifest import render_inference
from cpmbee_job.launch.kube.fields import is_true
from cpmbee_job.launch.kube.protocol import JOBS, Cluster, ignore_warning
from cpmbee_job.launch.lifecycle.cluster_jobs import SPARE_SECONDS, create_job, get_job, remove_job
from cpmbee_job.launch.local_inputs import Bar, find_inputs, hash_inputs, no_bar, upload_inputs
from cpmbee_job.launch.manifest.render import require_cluster
from cpmbee_job.launch.runs.find import FoundRun
from cpmbee_job.run import identity, keys
from cpmbee_job.run.deltas import delta_folder
from cpmbee_job.spec import JobSpec, StorageSpec
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store


@dataclass(frozen=True)
class InferenceTask:
    """What to compute. Inputs are local paths or `s3://` URLs."""

    command: keys.InferenceCommand
    model: str
    delta: str | None
    """A delta folder, a file, or a run's folder."""
    data: str
    flags: tuple[str, ...]
    """All other flags that determine the result."""

    @property
    def result(self) -> str:
        """The key of the object that the pod writes last."""
        return keys.INFERENCE_RESULTS[self.command]


@dataclass(frozen=True)
class StartedInference:
    """The outcome of a request."""

    found: FoundRun
    """Identifies the Job and its pods. Its URL is that of the results; there is no spec in the store."""
    store: Store
    """The folder of the results."""
    done: bool
    """Whether the results exist."""
    why: str
    """What happened, as text."""


def start_inference(
    spec: JobSpec,
    task: InferenceTask,
    cluster: Cluster,
    storage: StorageSpec,
    *,
    bar: Bar = no_bar,
    warn: Callable[[str], None] = ignore_warning,
) -> StartedInference:
    """Find or start the Job. Image, resources and store are those of `spec`; `storage` is how this machine reaches the
    store. `warn` gets the API's warnings about the Job.

    Raises `SpecError` for invalid inputs or a spec that cannot run on a cluster, `PreflightError` if cluster, store or
    an input is missing or unreachable, `RefusedError` if the name of the Job belongs to another one.
    """
    with _named_as_flags(task):
        spec = _with_inputs(spec, task, storage)
        inputs = find_inputs(spec)
        require_cluster(spec, inputs)
        spec, uploads = hash_inputs(spec, inputs, bar)
        request = _request(spec, task, storage)
    digest = documents.digest(request)
    manifest = render_inference(spec, task.command, task.flags, digest, cluster.namespace)
    url, run_id = keys.inference_url(spec.output, digest), keys.inference_id(task.command, digest)
    store = open_store(url, storage)
    found = FoundRun(spec.name, run_id, url, None, None, storage=storage)
    if store.info(task.result) is not None:
        return StartedInference(found, store, True, "already done")
    job = get_job(cluster, found.job_name, url, kind=JOBS)
    if job is not None and not (is_true(job, "Failed") or is_true(job, "Complete")):
        return StartedInference(found, store, False, "already exists")
    if job is not None:  # it failed, or its results were deleted
        remove_job(cluster, job, kind=JOBS, timeout=spec.cluster.grace_period + SPARE_SECONDS)
    upload_inputs(uploads, open_store(keys.uploads_url(spec.output), storage), bar)
    store.put(keys.REQUEST, documents.to_json(request | {"launcher": cpmbee_job.__version__}))
    if not create_job(cluster, manifest, url, kind=JOBS, on_warning=warn):
        return StartedInference(found, store, False, "already exists")
    return StartedInference(found, store, False, "started" if job is None else "started again")


def _with_inputs(spec: JobSpec, task: InferenceTask, storage: StorageSpec) -> JobSpec:
    """Replace the spec's inputs by those of the task. A run's folder becomes that of its best delta, since an active
    run may move the pointer."""
    delta = None if task.delta is None else _absolute(task.delta)
    if delta is not None and delta.startswith("s3://"):
        delta = delta_folder(delta, storage)
    fields = {
        "model": _absolute(task.model),
        "data.train": _absolute(task.data),
        "data.eval": None,
        "lora.init_from": delta,
    }
    try:
        return spec.with_fields(fields)
    except ValueError as error:
        raise SpecError(documents.problem(error)) from error


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).expanduser().resolve())


def _request(spec: JobSpec, task: InferenceTask, storage: StorageSpec) -> dict[str, Any]:
    """Return all that determines the result."""
    assert isinstance(spec.data.train, str)
    inputs = {"model": spec.model, "delta": spec.lora.init_from, "data": spec.data.train}
    contents = {"model": identity.model_content(spec, storage)}
    for name, field, url in (("delta", "lora.init_from", inputs["delta"]), ("data", "data.train", inputs["data"])):
        if url is not None:
            contents[name] = identity.content(field, url, spec.output, storage)
    return {
        "command": task.command,
        "flags": list(task.flags),
        **inputs,
        "contents": contents,
        "image": spec.image,
        "output": spec.output,
    }


@contextmanager
def _named_as_flags(task: InferenceTask) -> Iterator[None]:
    """Replace the dotted keys in error messages by the flags with which the user named the inputs."""
    data = "--input" if task.command == "predict" else "--data"
    flags = {"model": "--model", "lora.init_from": "--delta", "data.train": data}
    try:
        yield
    except CpmbeeError as error:
        field, _, message = error.message.partition(": ")
        if field in flags:
            error.message = f"{flags[field]}: {message}"
        raise
