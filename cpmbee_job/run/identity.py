"""The identity of a run: a digest of what decides its outcome, which is fixed when it resumes, and of its key. Submits
of the same spec and inputs meet at the same run, so they need no lock."""

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from cpmbee_job import documents
from cpmbee_job.errors import NotFoundError, PreflightError, RefusedError
from cpmbee_job.run import keys
from cpmbee_job.run.model_files import check_model
from cpmbee_job.spec import JobSpec, StorageSpec
from cpmbee_job.store.base import listing_digest
from cpmbee_job.store.urls import list_objects, open_store

OUTCOME_DIGITS, KEY_DIGITS = 12, 8
_MAY_CHANGE = {
    "batch_size",
    "checkpoint_interval",
    "deadline",
    "engine",
    "inspect_iters",
    "keep_checkpoints",
    "layout",
    "max_failures",
    "recompute_layers",
    "save_name",
    "stall_timeout",
    "task_name",
}
"""Fields of `train` that change how the steps are executed, not what they compute."""


def training_fields(spec: JobSpec) -> dict[str, Any]:
    """Return the fields that decide what is computed, by dotted key. They must not change when a run resumes."""
    fields: dict[str, Any] = {"model": spec.model, "train.global_batch_size": spec.global_batch_size}
    for key, value in spec.train.model_dump(mode="json").items():
        if key not in _MAY_CHANGE and key != "global_batch_size":
            fields[f"train.{key}"] = value
    return fields | flatten(spec.model_dump(mode="json", include={"lora", "data"}))


def spec_digest(spec: JobSpec) -> str:
    """Return the digest of the training fields."""
    return documents.digest(training_fields(spec))


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested objects to dotted keys; the objects of a list get their index as key."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, list) and value and all(isinstance(member, Mapping) for member in value):
            value = {str(index): member for index, member in enumerate(value)}
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
    return flat


def require_same(url: str, what: str, now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Raise `RefusedError` with the differences between the current values and those the run at `url` began with."""
    changed = [key for key in {**then, **now} if now.get(key) != then.get(key)]
    if changed:
        show = partial(json.dumps, ensure_ascii=False)
        lines = "".join(f"\n  {key}: {show(then.get(key))} -> {show(now.get(key))}" for key in changed)
        raise RefusedError(
            f"{url}: {what} is not what this run began with:{lines}",
            hint="restore the old values, or start another run (`submit`; `local` with another --run-id)",
        )


def identity(spec: JobSpec, storage: StorageSpec, key: str = "") -> str:
    """Return digits of the digest of the training fields and of the objects at the URLs of data and model, followed by
    digits of the digest of `--key`. Raises `PreflightError` if an input does not exist, `ModelError` for a folder that
    is not a model."""
    inputs = {field: url for field, url in spec.inputs.items() if field != "model"}
    contents = {field: content(field, url, spec.output, storage) for field, url in inputs.items()}
    outcome = documents.digest(
        {
            "fields": training_fields(spec),
            "data": {field: digest for field, digest in contents.items() if field.startswith("data.")},
            "model": model_content(spec, storage),
        }
    )
    return outcome[:OUTCOME_DIGITS] + (documents.digest(key)[:KEY_DIGITS] if key else "")


def run_id(identity: str, generation: int) -> str:
    """Return the id of the first, second, ... run of an identity (`--new` begins another generation)."""
    return identity if generation == 1 else f"{identity}-{generation}"


def generation(identity: str, run_id: str) -> int:
    """Return the generation of a run id, 0 if it has another identity."""
    match = re.fullmatch(rf"{identity}(?:-([2-9]|[1-9]\d+))?", run_id)
    return 0 if match is None else int(match[1] or 1)


def has_same_outcome(identity: str, run_id: str) -> bool:
    """Return whether the run trains the same, under any key."""
    same = identity[:OUTCOME_DIGITS]
    return re.fullmatch(rf"{same}([0-9a-f]{{{KEY_DIGITS}}})?(-\d+)?", run_id) is not None


def content(field: str, url: str, output: str, storage: StorageSpec) -> str:
    """Return the digest of the objects at the URL; the URL of an upload contains it."""
    uploaded = re.match(rf"{re.escape(keys.uploads_url(output))}/([0-9a-f]{{32}})/", url)
    if uploaded is not None:
        return uploaded[1]
    try:
        _, objects = list_objects(url, storage)
    except NotFoundError as error:
        raise PreflightError(f"{field}: {error.message}", hint=error.hint) from error
    return listing_digest(objects)


def model_content(spec: JobSpec, storage: StorageSpec) -> str:
    """Return the digest of the objects directly in the model folder."""
    if spec.model.startswith(f"{keys.uploads_url(spec.output)}/"):
        return content("model", spec.model, spec.output, storage)
    objects = [entry for entry in open_store(spec.model, storage).list() if "/" not in entry.key]
    if not objects:
        raise PreflightError(f"model: {spec.model}: no such folder, or no files in it", hint="name the folder itself")
    check_model(spec.model, [entry.key for entry in objects])
    return listing_digest(objects)
