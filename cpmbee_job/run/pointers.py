"""Pointers: `delta/BEST` and `delta/LAST` name a delta, `checkpoints/LATEST` names a checkpoint."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from pydantic import Field

from cpmbee_job import documents
from cpmbee_job.documents import Document, Number
from cpmbee_job.errors import ConflictError, DamagedError, NotFoundError, RefusedError
from cpmbee_job.store.base import Store


class CheckpointPointer(Document):
    """`LATEST`, and references to a checkpoint in other documents."""

    step: Number
    attempt: Number


class DeltaPointer(Document):
    """`BEST` and `LAST` of a run; `BEST` also of a fetched delta and of promoted deltas."""

    prefix: Annotated[str, Field(pattern=r"^delta/([0-9a-f]+(\.[0-9]+)?/)?$")]


class _Written(Document):
    attempt: Number


def read_checkpoint_pointer(store: Store, key: str) -> CheckpointPointer:
    """Read `LATEST` or the begin document of an attempt. Raises `NotFoundError`, `DamagedError`."""
    return CheckpointPointer.parse(store.get(key), f"{store.url}/{key}")


def read_delta_pointer(store: Store, key: str) -> str:
    """Return the prefix of the delta that `BEST` or `LAST` names. Raises `NotFoundError`, `DamagedError`."""
    return read_delta_pointer_with_etag(store, key)[0]


def read_delta_pointer_with_etag(store: Store, key: str) -> tuple[str, str]:
    """Return the prefix, and the pointer's ETag for `replace_pointer`."""
    try:
        data, etag = store.get_with_etag(key)
    except NotFoundError as error:
        raise NotFoundError(
            f"{store.url}: no delta yet ({key} does not exist)",
            hint="a delta is written by every evaluation with a new best loss, and at the end of training; "
            "`fetch --what metrics,logs` fetches what exists",
        ) from error
    return DeltaPointer.parse(data, f"{store.url}/{key}").prefix, etag


def replace_pointer(store: Store, key: str, document: Mapping[str, Any], etag: str | None) -> None:
    """Write a pointer if its ETag is still `etag` (None: if it does not exist). Raises `ConflictError`."""
    store.put(key, documents.to_json(document), if_none_match=etag is None, if_match=etag)


def move_pointer(store: Store, key: str, target: Mapping[str, Any], attempt: int) -> None:
    """Point `key` to `target` in the name of `attempt`. Raises `RefusedError` if a newer attempt has moved it."""
    while True:
        etag: str | None = None
        with suppress(NotFoundError):
            old, etag = store.get_with_etag(key)
            with suppress(DamagedError):  # a corrupt pointer may be overwritten
                if (newest := _Written.parse(old, "").attempt) > attempt:
                    raise RefusedError(f"{store.url}/{key}: a newer attempt ({newest}) has taken over")
        with suppress(ConflictError):
            replace_pointer(store, key, {**target, "attempt": attempt}, etag)
            return
