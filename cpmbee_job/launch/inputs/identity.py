"""Which run a submit means: the digest of what decides its outcome, and that of a key. Two that submit the same meet at
the same run, so no lock is needed."""

import re

from cpmbee_job import contract
from cpmbee_job.errors import ModelError, NotFoundError, PreflightError
from cpmbee_job.run import training_fields
from cpmbee_job.spec import JobSpec, StorageSpec
from cpmbee_job.store.base import ObjectInfo, listing_digest
from cpmbee_job.store.urls import list_objects, open_store

OUTCOME_DIGITS, KEY_DIGITS = 12, 8


def identity(spec: JobSpec, storage: StorageSpec, key: str = "") -> str:
    """Digits of the digest of the training fields and of what lies at the data's and the model's URLs; with `--key`,
    digits of the key's behind them.

    Raises `PreflightError` where nothing lies there, `ModelError` for a folder that can't be a model's.
    """
    data = {field: url for field, url in spec.inputs.items() if field.startswith("data.")}
    if spec.lora.init_from is not None:
        content("lora.init_from", spec.lora.init_from, spec.output, storage)  # is it there?
    outcome = contract.digest(
        {
            "fields": training_fields(spec),
            "data": {field: content(field, url, spec.output, storage) for field, url in data.items()},
            "model": model_content(spec, storage),
        }
    )
    return outcome[:OUTCOME_DIGITS] + (contract.digest(key)[:KEY_DIGITS] if key else "")


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
    uploaded = re.match(rf"{re.escape(contract.uploads_url(output))}/([0-9a-f]{{32}})/", url)
    if uploaded is not None:
        return uploaded[1]
    try:
        _, objects = list_objects(url, storage)
    except NotFoundError as error:
        raise PreflightError(f"{field}: {error.message}", hint=error.hint) from error
    return listing_digest(objects)


def model_content(spec: JobSpec, storage: StorageSpec) -> str:
    """Likewise of the model folder, where only objects directly in it count."""
    uploads = f"{contract.uploads_url(spec.output)}/"
    if spec.model.startswith(uploads):
        return content("model", spec.model, spec.output, storage)
    objects: list[ObjectInfo] = [entry for entry in open_store(spec.model, storage).list() if "/" not in entry.key]
    if not objects:
        raise PreflightError(f"model: {spec.model}: no folder with files in it", hint="name the folder itself")
    check_model(spec.model, [entry.key for entry in objects])
    return listing_digest(objects)
