"""When a run may resume, and which fields of its spec may change when it does."""

import json
from collections.abc import Mapping
from typing import Any

from cpmbee_job import documents
from cpmbee_job.errors import RefusedError
from cpmbee_job.spec import JobSpec

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
        lines = "".join(f"\n  {key}: {_show(then.get(key))} -> {_show(now.get(key))}" for key in changed)
        raise RefusedError(
            f"{url}: {what} is not what this run began with:{lines}",
            hint="restore the old values, or start another run (`submit`; `local` with another --run-id)",
        )


def may_resume(state: str) -> bool:
    """Return whether a run whose result has this state may continue: it failed or was cancelled."""
    return state != "succeeded"


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
