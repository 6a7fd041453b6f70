"""Which run a submit means: the digest of what decides its outcome, and that of a key. Two that submit the same meet at
the same run, so no lock is needed."""

import re
from collections.abc import Mapping
from typing import Any

from cpmbee_job import documents
from cpmbee_job.errors import ModelError, NotFoundError, PreflightError
from cpmbee_job.run import keys
from cpmbee_job.spec import JobSpec, StorageSpec
from cpmbee_job.store.base import ObjectInfo, listing_digest
from cpmbee_job.store.urls import list_objects, open_store

# What may differ when a run goes on: it changes how the steps are executed, not what they compute.
_HARMLESS = {
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


OUTCOME_DIGITS, KEY_DIGITS = 12, 8


def training_fields(spec: JobSpec) -> dict[str, Any]:
    """The fields that decide what is computed, by dotted key; a run can't go on when one of them changes."""
    fields: dict[str, Any] = {"model": spec.model, "train.global_batch_size": spec.global_batch_size}
    for key, value in spec.train.model_dump(mode="json").items():
        if key not in _HARMLESS and key != "global_batch_size":
            fields[f"train.{key}"] = value
    return fields | flatten(spec.model_dump(mode="json", include={"lora", "data"}))


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted key; members of a list of records by their number."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, list) and value and all(isinstance(member, Mapping) for member in value):
            value = {str(number): member for number, member in enumerate(value)}
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
    return flat


def identity(spec: JobSpec, storage: StorageSpec, key: str = "") -> str:
    """Digits of the digest of the training fields and of what lies at the data's and the model's URLs; with `--key`,
    digits of the key's behind them.

    Raises `PreflightError` where nothing lies there, `ModelError` for a folder that can't be a model's.
    """
    data = {field: url for field, url in spec.inputs.items() if field.startswith("data.")}
    if spec.lora.init_from is not None:
        content("lora.init_from", spec.lora.init_from, spec.output, storage)  # is it there?
    outcome = documents.digest(
        {
            "fields": training_fields(spec),
            "data": {field: content(field, url, spec.output, storage) for field, url in data.items()},
            "model": model_content(spec, storage),
        }
    )
    return outcome[:OUTCOME_DIGITS] + (documents.digest(key)[:KEY_DIGITS] if key else "")


def run_id(identity: str, generation: int) -> str:
    """Of the first, second, ... run of this identity (`--new` begins another one)."""
    return identity if generation == 1 else f"{identity}-{generation}"


def generation(identity: str, run_id: str) -> int:
    """The inverse of `run_id`; 0 where the id is another identity's."""
    match = re.fullmatch(rf"{identity}(?:-([2-9]|[1-9]\d+))?", run_id)
    return 0 if match is None else int(match[1] or 1)


def has_same_outcome(identity: str, run_id: str) -> bool:
    """Whether the run trains the same, under whatever key."""
    same = identity[:OUTCOME_DIGITS]
    return re.fullmatch(rf"{same}([0-9a-f]{{{KEY_DIGITS}}})?(-\d+)?", run_id) is not None


def check_model(url: str, names: list[str]) -> None:
    """Raises `ModelError` where files of these names can't be a model; whether they fit each other, pods find out."""
    problem = None
    for needed in ("vocab.txt", "config.json"):
        if needed not in names:
            problem = f"no {needed} in it"
    if not any(re.fullmatch(r".+\.safetensors|pytorch_model.*\.bin", name) for name in names):
        problem = "no weights in it"
    if problem is not None:
        raise ModelError(
            f"model: {url}: {problem}",
            hint="it names a folder with vocab.txt, config.json and weights (*.safetensors or pytorch_model.bin)",
        )


def content(field: str, url: str, output: str, storage: StorageSpec) -> str:
    """Digest of what lies at the URL; of what an upload has placed there it is part of the URL."""
    uploaded = re.match(rf"{re.escape(keys.uploads_url(output))}/([0-9a-f]{{32}})/", url)
    if uploaded is not None:
        return uploaded[1]
    try:
        _, objects = list_objects(url, storage)
    except NotFoundError as error:
        raise PreflightError(f"{field}: {error.message}", hint=error.hint) from error
    return listing_digest(objects)


def model_content(spec: JobSpec, storage: StorageSpec) -> str:
    """Likewise of the model folder, where only objects directly in it count."""
    uploads = f"{keys.uploads_url(spec.output)}/"
    if spec.model.startswith(uploads):
        return content("model", spec.model, spec.output, storage)
    objects: list[ObjectInfo] = [entry for entry in open_store(spec.model, storage).list() if "/" not in entry.key]
    if not objects:
        raise PreflightError(f"model: {spec.model}: no folder with files in it", hint="name the folder itself")
    check_model(spec.model, [entry.key for entry in objects])
    return listing_digest(objects)
