"""What the doctor looks at in the object store: rights, conditional puts, and whether model and data are there."""

import re
import secrets
from collections.abc import Callable, Iterator

from rich.filesize import decimal

from cpmbee_job import documents
from cpmbee_job.errors import ConflictError, CpmbeeError, ModelError, NotFoundError
from cpmbee_job.launch.checks.findings import Finding
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.run.model_files import CONFIG, SAFETENSORS_INDEX, VOCABULARY, check_model
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import ObjectInfo, Store
from cpmbee_job.store.urls import list_objects

_NEEDS_CONDITIONS = "use a server that honours conditional puts, as AWS does: runs and attempts are agreed on by them"


def check_output(store: Store) -> Iterator[Finding]:
    """Whether runs can be written there: each right, and conditional puts, tried on an object of our own that
    is removed again.
    """
    key = f".cpmbee-job-doctor-{secrets.token_hex(8)}"
    problems: list[tuple[str, CpmbeeError]] = []

    def attempt(right: str, action: Callable[[], object]) -> bool:
        try:
            action()
        except CpmbeeError as error:
            problems.append((right, error))
            return False
        return True

    attempt("list", lambda: list(store.list(key)))
    findings: list[Finding] = []
    if attempt("write", lambda: store.put(key, b"1", if_none_match=True)):
        attempt("read", lambda: store.get(key))
        findings = list(_conditions(store, key))
        attempt("delete", lambda: store.delete(key))
    first = problems[0][1] if problems else None
    if first is not None:
        same = [right for right, error in problems if error.hint == first.hint]
        yield Finding("output", "problem", f"cannot {', '.join(same)}: {first.message}", first.hint)
        for right, error in problems:
            if right not in same:
                yield Finding("output", "problem", f"cannot {right}: {error.message}", error.hint)
    else:
        yield Finding("output", "ok", f"{store.url}: objects can be listed, written, read and deleted")
    yield from findings


def check_model_folder(store: Store) -> Iterator[Finding]:
    """Whether all files of the model are there, as far as it shows without reading weights."""
    files = {entry.key: entry for entry in store.list() if "/" not in entry.key}
    if not files:
        raise NotFoundError(f"{store.url}: no folder with files in it", hint="`model` names the folder itself")
    check_model(store.url, list(files))
    if not files[VOCABULARY].size:
        raise ModelError(f"{store.url}: {VOCABULARY} is empty", hint="copy it again")
    config = model_config(store)
    weights = _weights(store, files)
    size = sum(entry.size for entry in weights)
    shape = f"{config.num_layers} layers of width {config.dim_model}"
    yield Finding("model", "ok", f"{store.url}: {shape}, {decimal(size)} of weights in {_files(len(weights))}")


def model_config(store: Store) -> ModelConfig:
    return ModelConfig.from_dict(_json(store, CONFIG), source=f"{store.url}/{CONFIG}")


def check_data(field: str, url: str, storage: StorageSpec) -> Iterator[Finding]:
    """Whether something lies where a field of the spec says."""
    _, objects = list_objects(url, storage)
    size = sum(entry.size for entry in objects)
    if not size:
        yield Finding(field, "problem", f"{url}: {_files(len(objects))}, all empty", "name the data")
        return
    yield Finding(field, "ok", f"{url}: {decimal(size)} in {_files(len(objects))}")


def _conditions(store: Store, key: str) -> Iterator[Finding]:
    """Whether puts with a condition that does not hold are refused, and those with one that holds are not."""
    ignored = []
    try:
        try:
            store.put(key, b"2", if_none_match=True)
            ignored.append("If-None-Match")
        except ConflictError:
            pass
        _, tag = store.get_with_etag(key)
        newer = store.put(key, b"3", if_match=tag)
        try:
            store.put(key, b"4", if_match=tag if tag != newer else "0" * 32)
            ignored.append("If-Match")
        except ConflictError:
            pass
    except CpmbeeError as error:
        yield Finding("conditional put", "problem", error.message, error.hint or _NEEDS_CONDITIONS)
        return
    if ignored:
        yield Finding(
            "conditional put", "problem", f"the store takes no notice of {' and '.join(ignored)}", _NEEDS_CONDITIONS
        )
    else:
        yield Finding("conditional put", "ok", "If-None-Match and If-Match are honoured")


def _weights(store: Store, files: dict[str, ObjectInfo]) -> list[ObjectInfo]:
    """The files that hold weights. Raises `ModelError` where the index names others."""
    if SAFETENSORS_INDEX not in files:
        safetensors = [entry for name, entry in files.items() if name.endswith(".safetensors")]
        return safetensors or [e for name, e in files.items() if re.fullmatch(r"pytorch_model.*\.bin", name)]
    index = _json(store, SAFETENSORS_INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{store.url}/{SAFETENSORS_INDEX}: not an index of safetensors files")
    names = sorted(set(map(str, weight_map.values())))
    if missing := [name for name in names if name not in files]:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ModelError(
            f"{store.url}: {SAFETENSORS_INDEX} names files that are not there: {shown}", hint="copy them too"
        )
    found = [files[name] for name in names]
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, int) and sum(entry.size for entry in found) < total:
        raise ModelError(
            f"{store.url}: {SAFETENSORS_INDEX} counts {total:,} bytes of weights, its files have fewer",
            hint="copy them again",
        )
    return found


def _json(store: Store, key: str) -> dict[str, object]:
    try:
        return documents.from_json(store.get(key))
    except ValueError as error:
        raise ModelError(f"{store.url}/{key}: not valid JSON: {error}") from error


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
