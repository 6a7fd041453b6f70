"""What every object store does, and how a URL becomes one.

A `Store` is a folder of objects: keys are relative to its URL and use `/`. An object becomes visible whole or not at
all; a conditional put is the only way to agree on something. `open_store` picks the implementation by scheme.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cpmbee_job.errors import NotFoundError, SpecError
from cpmbee_job.spec import StorageSpec

Progress = Callable[[int], None]
"""Called with the number of bytes that have just been moved (negative where they have to be moved again), from any
thread."""


def no_progress(_num_bytes: int) -> None:
    """The null `Progress`."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object: its key relative to the store, its size in bytes, and a tag that changes with its content."""

    key: str
    size: int
    etag: str


class Store(Protocol):
    """A folder of objects. Errors: `NotFoundError` for a missing object, `ConflictError` for a conditional put that
    lost, `StoreError` for what retries did not mend.
    """

    @property
    def url(self) -> str:
        """The URL that opened it, without a trailing slash."""

    def get(self, key: str) -> bytes:
        """The whole object, verified against the store's own checksum where it has one."""

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """The whole object, and the tag to give to `put(if_match=...)`."""

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; exactly that many, or `StoreError`."""

    def info(self, key: str) -> ObjectInfo | None:
        """The object's entry, or None where there is none."""

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """Write the whole object and return its tag. `if_none_match`: only where none is; `if_match`: only over the
        object with that tag.
        """

    def upload(self, path: Path, key: str, progress: Progress = no_progress) -> None:
        """Write the file at `path`, in parallel parts where it is large; never half visible."""

    def download(self, key: str, path: Path, progress: Progress = no_progress) -> None:
        """Write the object to `path` (whole, then renamed), in parallel ranges where it is large."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, sorted by key."""

    def delete(self, key: str) -> None:
        """Remove the object; it is no error where there is none."""

    def local_path(self, key: str) -> Path | None:
        """The object's place on this machine's disk where it has one (to map into memory), else None."""


def check_key(key: str) -> str:
    """The key itself, where it names an object; `SpecError` for one that would leave its folder."""
    parts = key.split("/")
    if not parts[0] or not parts[-1] or "\0" in key or any(part in (".", "..") for part in parts):
        raise SpecError(f"{key!r} can't be the name of an object")
    return key


def open_store(url: str, storage: StorageSpec | None = None) -> Store:
    """The store behind `s3://bucket/prefix`, `file:///folder` or a plain path of a folder."""
    scheme, separator, _ = url.partition("://")
    if separator and scheme == "s3":
        from cpmbee_job.store.s3 import S3Store

        return S3Store(url, storage or StorageSpec())
    if separator and scheme != "file":
        raise SpecError(f"{url}: no store for '{scheme}://'", hint="use s3://bucket/folder, file:///folder or a path")
    from cpmbee_job.store.files import FileStore

    return FileStore(url)


def open_object(url: str, storage: StorageSpec | None = None) -> tuple[Store, str]:
    """The store of the folder that holds the object at `url`, and the object's key in it."""
    scheme, separator, path = url.rpartition("://")
    folder, slash, name = path.rstrip("/").rpartition("/")
    if not name or (scheme == "s3" and not folder):
        raise SpecError(f"{url}: names no object", hint="use s3://bucket/folder/name, file:///folder/name or a path")
    return open_store(scheme + separator + (folder or slash or "."), storage), name


def list_objects(url: str, storage: StorageSpec | None = None) -> tuple[Store, list[ObjectInfo]]:
    """What a URL of a user means: the one object it names, or all objects below the folder it names (sorted by key;
    names that start with a dot or an underscore are left out). Raises `NotFoundError` where there is neither.
    """
    is_bucket = url.startswith("s3://") and "/" not in url.removeprefix("s3://")
    if not url.endswith("/") and not is_bucket:
        store, name = open_object(url, storage)
        found = store.info(name) if name not in (".", "..") else None
        if found is not None:
            return store, [found]
    store = open_store(url, storage)
    objects = [o for o in store.list() if not any(part.startswith((".", "_")) for part in o.key.split("/"))]
    if not objects:
        raise NotFoundError(f"{url}: nothing there", hint="name an object, or a folder with objects in it")
    return store, objects
