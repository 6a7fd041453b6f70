"""What every object store does.

A `Store` is a folder of objects: keys are relative to its URL and use `/`. An object becomes visible whole or not at
all; a conditional put is the only way to agree on something.
"""

import builtins
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cpmbee_job import documents
from cpmbee_job.errors import SpecError, StoreError

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
    sha256: str | None = field(default=None, compare=False)
    """Of its content, where the store has been told and was asked for this one object."""
    modified: float | None = field(default=None, compare=False)
    """When it was written, in seconds since 1970 by the store's clock; in a listing."""


@dataclass(frozen=True)
class Leftover:
    """What an upload has left that was cut: it is no object, and takes up room."""

    key: str
    """What it was to become (or, in a folder, the hidden file's name)."""
    size: int
    modified: float
    """When its last part came, in seconds since 1970 by the store's clock."""
    upload_id: str = ""


def listing_digest(listing: Iterable[ObjectInfo]) -> str:
    """Digest of keys, sizes and tags: another one when any object changes."""
    return documents.digest(sorted([info.key, info.size, info.etag] for info in listing))


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

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview], etag: str) -> None:
        """Fill one buffer after the other with the bytes from `start` of the object with that tag; `StoreError` where
        it is another by now."""

    def info(self, key: str) -> ObjectInfo | None:
        """The object's entry, or None where there is none."""

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """Write the whole object and return its tag. `if_none_match`: only where none is; `if_match`: only over the
        object with that tag.
        """

    def upload(self, path: Path, key: str, progress: Progress = no_progress, *, sha256: str | None = None) -> None:
        """Write the file at `path`, in parallel parts where it is large; never half visible. After a cut the next call
        moves what is missing. `sha256`: of the file, where it is known; of a large object nothing else tells `info`.
        """

    def download(self, key: str, path: Path, progress: Progress = no_progress) -> None:
        """Write the object to `path` (whole, then renamed), in parallel ranges where it is large. After a cut the next
        call moves what is missing."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, sorted by key."""

    def folders(self, prefix: str = "") -> builtins.list[str]:
        """Names of the folders directly in the folder `prefix` (without a trailing slash), sorted."""

    def delete(self, key: str) -> None:
        """Remove the object; it is no error where there is none."""

    def leftovers(self) -> Iterator[Leftover]:
        """What uploads have left that were cut, or are under way."""

    def discard(self, leftover: Leftover) -> None:
        """Remove it; it is no error where there is none."""

    def local_path(self, key: str) -> Path | None:
        """The object's place on this machine's disk where it has one (to map into memory), else None."""


def changed(name: str) -> StoreError:
    """The error for an object that is not the one any more whose tag was read before."""
    return StoreError(f"{name}: changed while it was read", hint="try again")


def check_key(key: str) -> str:
    """The key itself, where it names an object; `SpecError` for one that would leave its folder."""
    parts = key.split("/")
    if not parts[0] or not parts[-1] or "\0" in key or any(part in (".", "..") for part in parts):
        raise SpecError(f"{key!r} can't be the name of an object")
    return key
