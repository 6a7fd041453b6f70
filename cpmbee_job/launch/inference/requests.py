"""`evaluate` and `predict` in a pod: found where the same has been asked before, begun where not.

What is asked for decides the digest, and that the names of the Job and of its folder in the store; so asking again
finds the Job, or what it has left. Whatever has failed is begun again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cpmbee_job
from cpmbee_job import documents
from cpmbee_job.errors import ConflictError, CpmbeeError, NotFoundError, RefusedError, SpecError, UnreachableError
from cpmbee_job.launch.inference.job_manifest import render_inference
from cpmbee_job.launch.kube.fields import is_true
from cpmbee_job.launch.kube.protocol import JOBS, Cluster, Object, ignore_warning
from cpmbee_job.launch.lifecycle.pytorchjob import SPARE_SECONDS, remove_job
from cpmbee_job.launch.local_inputs import Bar, find_places, hash_places, no_bar, send
from cpmbee_job.launch.runs.find import FoundRun, job_url
from cpmbee_job.run import identity, keys
from cpmbee_job.run.deltas import best_prefix
from cpmbee_job.spec import JobSpec, StorageSpec
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store


@dataclass(frozen=True)
class Question:
    """What is asked for. Places are paths of this machine or `s3://` URLs."""

    command: keys.InferenceCommand
    model: str
    delta: str | None
    """A delta folder, a file, or a run's folder."""
    data: str
    flags: tuple[str, ...]
    """All others that decide what comes out."""

    @property
    def data_flag(self) -> str:
        return "--input" if self.command == "predict" else "--data"


@dataclass(frozen=True)
class Inference:
    """What asking has led to."""

    found: FoundRun
    """By whose labels its pods are known; it has no spec in the store."""
    store: Store
    """The folder with what comes out."""
    done: bool
    why: str
    """In words."""


def begin(
    spec: JobSpec,
    question: Question,
    cluster: Cluster,
    storage: StorageSpec,
    *,
    bar: Bar = no_bar,
    warn: Callable[[str], None] = ignore_warning,
) -> Inference:
    """Find or begin the Job. `spec` gives image, resources, store and the like; `storage` is how this machine reaches
    that store. `warn` gets what the cluster has to say about the Job.

    Raises `SpecError` for inputs that can't be and for what no cluster could run, `PreflightError` where cluster, store
    or inputs are out of reach, `RefusedError` where the Job's name is something else's.
    """
    command, flags = question.command, question.flags
    with _in_terms_of_flags(question):
        spec = _with_inputs(spec, question, storage)
        places = find_places(spec)
        render_inference(spec.with_fields(dict.fromkeys(places, "s3://uploads/")), command, flags, "0")
        spec, uploads = hash_places(spec, places, bar)
        request = _request(spec, question, storage)
    digest = documents.digest(request)
    url, run_id = keys.inference_url(spec.output, digest), keys.inference_id(command, digest)
    store = open_store(url, storage)
    found = FoundRun(spec.name, run_id, url, None, None, storage=storage)
    if store.info(keys.INFERENCE_RESULTS[command]) is not None:
        return Inference(found, store, True, "it has been done before")
    job = _get_job(cluster, found)
    if job is not None and not (is_true(job, "Failed") or is_true(job, "Complete")):
        return Inference(found, store, False, "it is there already")
    if job is not None:  # it has failed, or somebody has deleted what came out
        remove_job(cluster, job, kind=JOBS, timeout=spec.cluster.grace_period + SPARE_SECONDS)
    send(uploads, open_store(keys.uploads_url(spec.output), storage), bar)
    store.put(keys.REQUEST, documents.to_json(request | {"launcher": cpmbee_job.__version__}))
    try:
        cluster.create(JOBS, render_inference(spec, command, flags, digest, cluster.namespace), on_warning=warn)
    except ConflictError:
        _get_job(cluster, found)
        return Inference(found, store, False, "it is there already")
    except UnreachableError as error:
        raise UnreachableError(error.message, hint="the same command again goes on from here") from error
    return Inference(found, store, False, "begun" if job is None else "begun again")


def _with_inputs(spec: JobSpec, question: Question, storage: StorageSpec) -> JobSpec:
    """The spec with the question's inputs in the place of its own."""
    delta = question.delta
    fields = {
        "model": _absolute(question.model),
        "data.train": _absolute(question.data),
        "data.eval": None,
        "lora.init_from": None if delta is None else _fixed_delta(_absolute(delta), storage),
    }
    try:
        return spec.with_fields(fields)
    except ValueError as error:
        raise SpecError(documents.problem(error)) from error


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).expanduser().resolve())


def _fixed_delta(place: str, storage: StorageSpec) -> str:
    """Of a run's folder in the store the delta that is its best now: a running run may find a better one."""
    if not place.startswith("s3://"):
        return place
    store = open_store(place, storage)
    prefix = best_prefix(store)
    return f"{store.url}/{prefix}" if prefix else place


def _request(spec: JobSpec, question: Question, storage: StorageSpec) -> dict[str, Any]:
    """What decides the result, for the digest and for those who find it in the store."""
    assert isinstance(spec.data.train, str)
    inputs = {"model": spec.model, "delta": spec.lora.init_from, "data": spec.data.train}
    contents = {"model": identity.model_content(spec, storage)}
    for name, field, url in (("delta", "lora.init_from", inputs["delta"]), ("data", "data.train", inputs["data"])):
        if url is not None:
            contents[name] = identity.content(field, url, spec.output, storage)
    return {
        "command": question.command,
        "flags": list(question.flags),
        **inputs,
        "contents": contents,
        "image": spec.image,
        "output": spec.output,
    }


@contextmanager
def _in_terms_of_flags(question: Question) -> Iterator[None]:
    """Inputs are fields of the spec on their way; to the user they are flags."""
    flags = {"model": "--model", "lora.init_from": "--delta", "data.train": question.data_flag}
    try:
        yield
    except CpmbeeError as error:
        field, _, words = error.message.partition(": ")
        if field in flags:
            error.message = f"{flags[field]}: {words}"
        raise


def _get_job(cluster: Cluster, found: FoundRun) -> Object | None:
    """The Job, or None. Raises `RefusedError` where the name is something else's."""
    try:
        job = cluster.get(JOBS, found.job_name)
    except NotFoundError:
        return None
    if job_url(job) != found.url:
        raise RefusedError(
            f"the Job {found.job_name} in namespace {cluster.namespace} is not one of {found.url}",
            hint="it is in the way: delete it, or take another namespace",
        )
    return job
