"""The interface of all object stores. A `Store` is a folder of objects. Keys are relative to its URL and use `/`. An
object becomes visible as a whole. Only conditional puts synchronize processes."""

import builtins
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cpmbee_job import documents
from cpmbee_job.errors import DamagedError, SpecError, StoreError

Progress = Callable[[int], None]
"""Called from any thread with the number of bytes just transferred; negative for bytes to be transferred again."""


def no_progress(_num_bytes: int) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object: its key relative to the store, its size in bytes, and its ETag."""

    key: str
    size: int
    etag: str
    sha256: str | None = field(default=None, compare=False)
    """SHA-256 of the content in hex, if available; not in listings."""
    modified: float | None = field(default=None, compare=False)
    """When it was written, in seconds since 1970 by the store's clock; in listings."""


@dataclass(frozen=True)
class Leftover:
    """The remains of an incomplete upload. They are not an object, but take up space."""

    key: str
    """The object's key; in a folder, the name of the hidden file."""
    size: int
    modified: float
    """When its last part was written, in seconds since 1970 by the store's clock."""
    upload_id: str = ""


def listing_digest(listing: Iterable[ObjectInfo]) -> str:
    """Return the digest of keys, sizes and ETags. It changes when any object changes."""
    return documents.digest(sorted([info.key, info.size, info.etag] for info in listing))


class Store(Protocol):
    """A folder of objects. All methods raise `NotFoundError` for a missing object, `ConflictError` if the condition of
    a put fails, `StoreError` for errors that persist after retries."""

    url: str
    """The URL that opened it, without a trailing slash."""

    def get(self, key: str) -> bytes:
        """Return the object, verified against the store's checksum if it has one."""
        return self.get_with_etag(key)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """Return the object and its ETag, for `put(if_match=...)`."""

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from `start`, else raise `StoreError`."""
        data = bytearray(length)
        self.read_into(key, start, [memoryview(data)])
        return bytes(data)

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview], etag: str | None = None) -> None:
        """Fill the buffers in order with the bytes from `start`. Raises `StoreError` if the object ends before, or has
        another ETag."""

    def info(self, key: str) -> ObjectInfo | None:
        """Return the object's entry, None if it does not exist."""

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """Write the object and return its ETag. `if_none_match`: only if it does not exist; `if_match`: only if it has
        this ETag."""

    def upload(self, path: Path, key: str, progress: Progress = no_progress, *, sha256: str | None = None) -> None:
        """Write the file at `path`, in parallel parts if it is large. After an interruption, the next call transfers
        only what is missing. `sha256` of the file makes `info` return it for a large object."""

    def download(self, key: str, path: Path, progress: Progress = no_progress) -> None:
        """Write the object to `path` (to a hidden file, then renamed), in parallel ranges if it is large. After an
        interruption, the next call transfers only what is missing."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield all objects whose key starts with `prefix`, sorted by key."""

    def folders(self, prefix: str = "") -> builtins.list[str]:
        """Return the names of the folders directly in the folder `prefix` (without a trailing slash), sorted."""

    def delete(self, key: str) -> None:
        """Delete the object if it exists."""

    def leftovers(self) -> Iterator[Leftover]:
        """Yield the remains of incomplete uploads, including those in progress."""

    def discard(self, leftover: Leftover) -> None:
        """Delete the remains of an upload if they exist."""

    def local_path(self, key: str) -> Path | None:  # noqa: ARG002
        """Return the object's path on this machine (to map it into memory), None if it has none."""
        return None


def changed(name: str) -> StoreError:
    """Return the error for an object that changed since its ETag was read."""
    return StoreError(f"{name}: changed while it was read", hint="try again")


def check_key(key: str) -> str:
    """Return the key. Raises `SpecError` if it is invalid or leaves its folder."""
    parts = key.split("/")
    if not parts[0] or not parts[-1] or "\0" in key or any(part in (".", "..") for part in parts):
        raise SpecError(f"{key!r} is not a valid object name")
    return key


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_intact(path: Path, size: int, sha256: str) -> bool:
    """Return whether the file exists and has this size and hash."""
    return path.is_file() and path.stat().st_size == size and file_sha256(path) == sha256


def get_verified(store: Store, key: str, size: int, sha256: str) -> bytes:
    """Return the object. Raises `DamagedError` if its size or hash is different."""
    data = store.get(key)
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise _damaged(store, key)
    return data


def download_verified(
    store: Store, key: str, path: Path, size: int, sha256: str, progress: Progress = no_progress
) -> None:
    """Download the object, unless an earlier call did so. Raises `DamagedError` if its size or hash is different."""
    if is_intact(path, size, sha256):
        progress(size)
        return
    store.download(key, path, progress)
    if not is_intact(path, size, sha256):
        raise _damaged(store, key)


def _damaged(store: Store, key: str) -> DamagedError:
    return DamagedError(f"{store.url}/{key}: size or SHA-256 differs from its manifest")
