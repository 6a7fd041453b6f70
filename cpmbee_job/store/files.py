"""Objects as files of a folder: `file:///folder` or a path, with the semantics of S3.

Every write goes to a hidden file beside its place first, so no reader ever sees a part of an object. Tags are content
hashes. Hidden files of our own (`TEMPORARY`, `LOCK`) are no objects.
"""

import builtins
import errno
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO
from urllib.parse import unquote

from cpmbee_job.errors import ConflictError, CpmbeeError, DiskError, NotFoundError, SpecError, StoreError
from cpmbee_job.process import activity
from cpmbee_job.store.base import Leftover, ObjectInfo, Progress, changed, check_key, no_progress

TEMPORARY = ".cpmbee-tmp"
LOCK = ".cpmbee-lock"
COPY_BYTES = 4 << 20
FOLDER_TRIES = 1000
LONGEST_LOCK = 60.0  # seconds
REMEMBERED_FROM_BYTES = 1 << 20  # hashing less is cheaper than being wrong about a file rewritten within a clock tick


class FileStore:
    """A `Store` in a folder of this machine; the folder appears with its first object."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/") or "/"
        self.root = _folder(url)
        self._hashes: dict[tuple[int, ...], str] = {}
        self._hashes_lock = Lock()

    @property
    def url(self) -> str:
        return self._url

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with explained(path):
            return path.read_bytes()

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        data = self.get(key)
        return data, _hash(data)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        path = self._path(key)
        with explained(path), path.open("rb") as file:
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise StoreError(f"{path}: {length} bytes from {start} asked for, {len(data)} there")
        return data

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview], etag: str) -> None:
        path = self._path(key)
        with explained(path):
            if self._etag(path) != etag:
                raise changed(str(path))
            with path.open("rb") as file:
                file.seek(start)
                if any(file.readinto(buffer) != len(buffer) for buffer in buffers):
                    raise changed(str(path))

    def info(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        with explained(path):
            if not path.is_file():
                return None
            try:
                digest, state = self._etag(path), path.stat()
                return ObjectInfo(key, state.st_size, digest, digest, state.st_mtime)
            except FileNotFoundError:  # deleted meanwhile
                return None

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        path = self._path(key)
        with explained(path), self._new_file(path) as temporary:
            temporary.write_bytes(data)
            sync(temporary)
            if if_none_match:
                try:
                    os.link(temporary, path)  # atomic, and fails where the name is taken
                except FileExistsError as error:
                    raise ConflictError(f"{path}: exists already") from error
            else:
                with _locked(path.parent):
                    if if_match is not None and not (path.is_file() and self._etag(path) == if_match):
                        raise ConflictError(f"{path}: is no longer the object that was read")
                    temporary.replace(path)
            sync(path.parent)
        return _hash(data)

    def upload(
        self,
        path: Path,
        key: str,
        progress: Progress = no_progress,
        *,
        sha256: str | None = None,  # noqa: ARG002 (a file's is found out by reading it)
    ) -> None:
        target = self._path(key)
        with explained(path), path.open("rb") as source, explained(target), self._new_file(target) as temporary:
            _copy(source, temporary, progress)
            with _locked(target.parent):
                temporary.replace(target)
            sync(target.parent)

    def download(self, key: str, path: Path, progress: Progress = no_progress) -> None:
        origin = self._path(key)
        with explained(origin), origin.open("rb") as source, whole_file(path) as temporary:
            _copy(source, temporary, progress)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        start = self.root / prefix.rpartition("/")[0]
        if prefix.startswith("/") or ".." in start.parts:  # no key begins so
            return
        keys = []
        for folder, _, names in os.walk(start):
            relative = Path(folder).relative_to(self.root).as_posix()
            base = "" if relative == "." else f"{relative}/"
            keys += [base + name for name in names if not name.endswith((TEMPORARY, LOCK))]
        for key in sorted((key for key in keys if key.startswith(prefix)), key=os.fsencode):
            if (found := self.info(key)) is not None:
                yield found

    def folders(self, prefix: str = "") -> builtins.list[str]:
        folder = self._path(prefix) if prefix else self.root
        with explained(folder), suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            return sorted((entry.name for entry in entries if entry.is_dir()), key=os.fsencode)
        return []

    def delete(self, key: str) -> None:
        path = self._path(key)
        with explained(path):
            if not path.is_file():
                return
            with suppress(FileNotFoundError), _locked(path.parent):
                path.unlink()
            for folder in path.parents:  # as in S3, a folder without objects is none
                if folder == self.root:
                    break
                try:
                    folder.rmdir()
                except OSError:
                    break

    def leftovers(self) -> Iterator[Leftover]:
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                if name.endswith(TEMPORARY):
                    with suppress(FileNotFoundError):  # it has just become an object
                        state = path.stat()
                        yield Leftover(path.relative_to(self.root).as_posix(), state.st_size, state.st_mtime)

    def discard(self, leftover: Leftover) -> None:
        (self.root / leftover.key).unlink(missing_ok=True)

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    def _path(self, key: str) -> Path:
        if "//" in check_key(key) or key.endswith((TEMPORARY, LOCK)):
            raise SpecError(f"{self._url}: {key!r} can't be the name of a file")
        return self.root / key

    def _etag(self, path: Path) -> str:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            if state.st_size < REMEMBERED_FROM_BYTES:
                return hashlib.file_digest(file, "sha256").hexdigest()
            identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
            with self._hashes_lock:
                known = self._hashes.get(identity)
            if known is None:
                known = hashlib.file_digest(file, "sha256").hexdigest()
                with self._hashes_lock:
                    self._hashes[identity] = known
            return known

    @contextmanager
    def _new_file(self, path: Path) -> Iterator[Path]:
        """An empty hidden file beside `path`, gone at the end unless it was renamed."""
        require_replaceable(path)
        temporary = temporary_name(path)
        try:
            for _ in range(FOLDER_TRIES):
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    temporary.touch(exist_ok=False)
                    break
                except FileNotFoundError:  # a `delete` has removed the folder in between
                    continue
                except FileExistsError:  # likewise, unless something else is where the folder should be
                    if any(os.path.lexists(folder) and not folder.is_dir() for folder in path.parents):
                        raise
            else:  # it is no race, then: /proc, for one, has no room for new folders
                raise DiskError(f"{path.parent}: no folder can be made there")
            yield temporary
        finally:
            with suppress(OSError):
                temporary.unlink()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; it becomes `path`, flushed to disk, if the block ends well, else nothing.

    Raises `StoreError` in words for what the disk refuses.
    """
    temporary = temporary_name(path)
    with explained(path):
        require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what the operating system says about `path` into an error of ours."""
    try:
        yield
    except CpmbeeError:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise NotFoundError(f"{path}: a folder, not a file") from error
    except OSError as error:
        hint = None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = f"free space on the disk of {path.parent}"
        elif isinstance(error, PermissionError):
            hint = "this user may not read or write there"
        elif isinstance(error, NotADirectoryError | FileExistsError):
            hint = "a file is where a folder should be"
        raise DiskError(f"{path}: {error.strerror or error}", hint=hint) from error


def _folder(url: str) -> Path:
    if not url.startswith("file://"):
        return Path(url).expanduser().resolve()
    host, slash, path = url.removeprefix("file://").partition("/")
    if not slash or host not in ("", "localhost"):
        raise SpecError(
            f"{url}: a file URL holds an absolute path", hint=f"file:///{host}{slash}{path}, or just the path"
        )
    return Path("/" + unquote(path)).resolve()


def require_replaceable(path: Path) -> None:
    """Raise `DiskError` for a device or a pipe: root's rename would put a file in its place, for all programs."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DiskError(f"{path}: not a plain file", hint="name a file, which appears whole or not at all")


def temporary_name(path: Path) -> Path:
    """A hidden place beside `path` that nobody else uses."""
    return path.with_name(f".{path.name[:60]}.{uuid.uuid4().hex}{TEMPORARY}")


def _copy(source: BinaryIO, target: Path, progress: Progress) -> None:
    with target.open("wb") as file:
        while chunk := source.read(COPY_BYTES):
            file.write(chunk)
            activity.moved()
            progress(len(chunk))
    sync(target)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock file, which is there only meanwhile: a comparison and the rename after it are one."""
    path = folder / LOCK
    while True:
        with path.open("ab") as file:
            _wait_for_lock(file, path)
            if not is_open_file(path, file.fileno()):
                continue  # the holder we waited for has removed it: a lock on it excludes nobody any more
            try:
                yield
            finally:
                path.unlink()
            return


def _wait_for_lock(file: BinaryIO, path: Path) -> None:
    """The lock is the open file's, so threads exclude each other as well. Who has it needs a moment, unless it was
    stopped in mid-work; a killed one has it no more."""
    deadline = time.monotonic() + LONGEST_LOCK
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{path}: locked for {LONGEST_LOCK:.0f} s", hint="a process that writes there hangs: end it"
                ) from error
            time.sleep(0.002)
        else:
            return


def is_open_file(path: Path, descriptor: int) -> bool:
    """Whether it is still this open file that has the name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def sync(path: Path) -> None:
    """Flushes a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
