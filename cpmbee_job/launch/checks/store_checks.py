"""Checks of `doctor` in the object store: permissions, conditional puts, and whether model and data exist."""

import secrets
from collections.abc import Callable, Iterator

from rich.filesize import decimal

from cpmbee_job import documents
from cpmbee_job.errors import ConflictError, CpmbeeError, ModelError, NotFoundError
from cpmbee_job.launch.checks.check_result import CheckResult
from cpmbee_job.launch.kube.fields import integer
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.run.model_files import CONFIG, SAFETENSORS_INDEX, VOCABULARY, check_model, indexed_weights, weight_files
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import ObjectInfo, Store
from cpmbee_job.store.urls import list_objects

_CONDITIONAL_PUT = "conditional put"
_REQUIRES_CONDITIONS = "use a server with conditional puts, like AWS: concurrent runs and attempts depend on them"


def check_output(store: Store) -> Iterator[CheckResult]:
    """Check that runs can be written: each permission, and conditional puts, with an object that is deleted again."""
    key = f".cpmbee-job-doctor-{secrets.token_hex(8)}"
    failed: dict[str | None, tuple[list[str], CpmbeeError]] = {}

    def attempt(permission: str, action: Callable[[], object]) -> bool:
        try:
            action()
        except CpmbeeError as error:
            failed.setdefault(error.hint, ([], error))[0].append(permission)
            return False
        return True

    conditions: list[CheckResult] = []
    attempt("list", lambda: list(store.list(key)))
    if attempt("write", lambda: store.put(key, b"1", if_none_match=True)):
        attempt("read", lambda: store.get(key))
        conditions = [_check_conditions(store, key)]
        attempt("delete", lambda: store.delete(key))
    for permissions, error in failed.values():
        yield CheckResult("output", "problem", f"cannot {', '.join(permissions)}: {error.message}", error.hint)
    if not failed:
        yield CheckResult("output", "ok", f"{store.url}: can list, write, read and delete objects")
    yield from conditions


def check_model_folder(store: Store) -> Iterator[CheckResult]:
    """Check that all files of the model exist, without reading weights."""
    files = {entry.key: entry for entry in store.list() if "/" not in entry.key}
    if not files:
        raise NotFoundError(f"{store.url}: no such folder, or no files in it", hint="`model` names the folder itself")
    check_model(store.url, list(files))
    if not files[VOCABULARY].size:
        raise ModelError(f"{store.url}: {VOCABULARY} is empty", hint="copy it again")
    config = model_config(store)
    weights = _find_weights(store, files)
    size = sum(entry.size for entry in weights)
    shape = f"{config.num_layers} layers of width {config.dim_model}"
    yield CheckResult("model", "ok", f"{store.url}: {shape}, {decimal(size)} of weights in {_count(weights)}")


def model_config(store: Store) -> ModelConfig:
    """Read the model's configuration. Raises `ModelError` for an invalid one."""
    source = f"{store.url}/{CONFIG}"
    try:
        return ModelConfig.from_dict(documents.from_json(store.get(CONFIG)), source=source)
    except ValueError as error:
        raise ModelError(f"{source}: not valid JSON: {error}") from error


def check_data(field: str, url: str, storage: StorageSpec) -> Iterator[CheckResult]:
    """Check that there is data at the URL of this field of the spec."""
    _, objects = list_objects(url, storage)
    size = sum(entry.size for entry in objects)
    if size:
        yield CheckResult(field, "ok", f"{url}: {decimal(size)} in {_count(objects)}")
    else:
        yield CheckResult(field, "problem", f"{url}: {_count(objects)}, all empty", "name a file or folder with data")


def _check_conditions(store: Store, key: str) -> CheckResult:
    """Check that puts are refused if their condition does not hold, and only then."""
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
        return CheckResult(_CONDITIONAL_PUT, "problem", error.message, error.hint or _REQUIRES_CONDITIONS)
    if ignored:
        detail = f"the object store ignores {' and '.join(ignored)}"
        return CheckResult(_CONDITIONAL_PUT, "problem", detail, _REQUIRES_CONDITIONS)
    return CheckResult(_CONDITIONAL_PUT, "ok", "If-None-Match and If-Match work")


def _find_weights(store: Store, files: dict[str, ObjectInfo]) -> list[ObjectInfo]:
    """Return the files of the weights. Raises `ModelError` if the index names missing ones."""
    if SAFETENSORS_INDEX not in files:
        return [files[name] for name in weight_files(files)]
    content = store.get(SAFETENSORS_INDEX)
    found = [files[name] for name in indexed_weights(f"{store.url}/{SAFETENSORS_INDEX}", content, files)]
    total = integer(documents.from_json(content), "metadata", "total_size")
    if total is not None and sum(entry.size for entry in found) < total:
        raise ModelError(
            f"{store.url}: the weights are smaller than the {total:,} bytes that {SAFETENSORS_INDEX} names",
            hint="copy them again",
        )
    return found


def _count(files: list[ObjectInfo]) -> str:
    return "1 file" if len(files) == 1 else f"{len(files)} files"
