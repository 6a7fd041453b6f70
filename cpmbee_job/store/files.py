"""Objects as files of a folder (`file:///folder` or a path), with the semantics of S3. Every write goes to a hidden
file first, so that no reader sees a part of an object. ETags are SHA-256 of the content. Hidden files of this module
(`TEMPORARY`, `LOCK`) are not objects."""

import builtins
import errno
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from cpmbee_job.errors import ConflictError, CpmbeeError, DiskError, NotFoundError, SpecError, StoreError
from cpmbee_job.process import activity
from cpmbee_job.store.base import Leftover, ObjectInfo, Progress, Store, changed, check_key, no_progress

TEMPORARY = ".cpmbee-tmp"
LOCK = ".cpmbee-lock"
COPY_BYTES = 4 << 20
FOLDER_TRIES = 1000
LONGEST_LOCK = 60.0  # seconds
CACHED_FROM_BYTES = 1 << 20  # hash smaller files every time: they may be rewritten within a clock tick


class FileStore(Store):
    """A `Store` in a local folder, which is created with its first object."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or "/"
        self.root = _folder(url)
        self._hashes: dict[tuple[int, ...], str] = {}

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with translate_os_errors(path):
            return path.read_bytes()

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        data = self.get(key)
        return data, hashlib.sha256(data).hexdigest()

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview], etag: str | None = None) -> None:
        path = self._path(key)
        with translate_os_errors(path):
            if etag is not None and self._etag(path) != etag:
                raise changed(str(path))
            with path.open("rb") as file:
                file.seek(start)
                if any(file.readinto(buffer) != len(buffer) for buffer in buffers):
                    raise changed(str(path))

    def info(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        with translate_os_errors(path):
            if not path.is_file():
                return None
            try:
                digest, state = self._etag(path), path.stat()
                return ObjectInfo(key, state.st_size, digest, digest, state.st_mtime)
            except FileNotFoundError:  # just deleted
                return None

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        path = self._path(key)
        with translate_os_errors(path), _new_file(path) as temporary:
            temporary.write_bytes(data)
            sync(temporary)
            if if_none_match:
                try:
                    os.link(temporary, path)  # atomic, and fails if the name exists
                except FileExistsError as error:
                    raise ConflictError(f"{path}: exists already") from error
            else:
                with _locked(path.parent):
                    if if_match is not None and not (path.is_file() and self._etag(path) == if_match):
                        raise ConflictError(f"{path}: changed since it was read")
                    temporary.replace(path)
            sync(path.parent)
        return hashlib.sha256(data).hexdigest()

    def upload(self, path: Path, key: str, progress: Progress = no_progress, *, sha256: str | None = None) -> None:  # noqa: ARG002 (`info` computes it)
        target = self._path(key)
        with (
            translate_os_errors(path),
            path.open("rb") as source,
            translate_os_errors(target),
            _new_file(target) as new,
        ):
            _copy(source, new, progress)
            with _locked(target.parent):
                new.replace(target)
            sync(target.parent)

    def download(self, key: str, path: Path, progress: Progress = no_progress) -> None:
        origin = self._path(key)
        with translate_os_errors(origin), origin.open("rb") as source, whole_file(path) as temporary:
            _copy(source, temporary, progress)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        start = self.root / prefix.rpartition("/")[0]
        if prefix.startswith("/") or ".." in start.parts:  # not the prefix of any key
            return
        keys = (key for key in self._files(start) if not key.endswith((TEMPORARY, LOCK)) and key.startswith(prefix))
        for key in sorted(keys, key=os.fsencode):
            if (found := self.info(key)) is not None:
                yield found

    def folders(self, prefix: str = "") -> builtins.list[str]:
        folder = self._path(prefix) if prefix else self.root
        with translate_os_errors(folder), suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
            return sorted((entry.name for entry in found if entry.is_dir()), key=os.fsencode)
        return []

    def delete(self, key: str) -> None:
        path = self._path(key)
        with translate_os_errors(path):
            if not path.is_file():
                return
            with suppress(FileNotFoundError), _locked(path.parent):
                path.unlink()
            for folder in path.parents:  # as in S3, a folder without objects does not exist
                if folder == self.root:
                    break
                try:
                    folder.rmdir()
                except OSError:
                    break

    def leftovers(self) -> Iterator[Leftover]:
        for key in self._files(self.root):
            if key.endswith(TEMPORARY):
                with suppress(FileNotFoundError):  # it was just renamed
                    state = (self.root / key).stat()
                    yield Leftover(key, state.st_size, state.st_mtime)

    def discard(self, leftover: Leftover) -> None:
        (self.root / leftover.key).unlink(missing_ok=True)

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    def _files(self, folder: Path) -> Iterator[str]:
        """Yield the keys of all files in the folder and its subfolders, hidden ones included."""
        for place, _, names in os.walk(folder):
            base = Path(place).relative_to(self.root).as_posix()
            yield from (name if base == "." else f"{base}/{name}" for name in names)

    def _path(self, key: str) -> Path:
        if "//" in check_key(key) or key.endswith((TEMPORARY, LOCK)):
            raise SpecError(f"{self.url}: {key!r} is not a valid file name")
        return self.root / key

    def _etag(self, path: Path) -> str:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
            known = self._hashes.get(identity)
            if known is None:
                known = hashlib.file_digest(file, "sha256").hexdigest()
                if state.st_size >= CACHED_FROM_BYTES:
                    self._hashes[identity] = known
            return known


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Create an empty hidden file beside `path`; remove it at the end unless it was renamed."""
    require_replaceable(path)
    temporary = temporary_name(path)
    try:
        for _ in range(FOLDER_TRIES):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary.touch(exist_ok=False)
                break
            except FileNotFoundError:  # `delete` has just removed the folder
                continue
            except FileExistsError:  # likewise, unless a file has the name of the folder
                if any(os.path.lexists(folder) and not folder.is_dir() for folder in path.parents):
                    raise
        else:  # not a race: /proc, for example, allows no new folders
            raise DiskError(f"{path.parent}: cannot create this folder")
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a hidden file to write; if the block succeeds, flush it and rename it to `path`, else remove it. Raises
    `DiskError`."""
    with translate_os_errors(path), _new_file(path) as temporary:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Translate the `OSError`s of the block to errors of this package that name `path`."""
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
            hint = "this user has no permission to read or write there"
        elif isinstance(error, NotADirectoryError | FileExistsError):
            hint = "a file has the name of a folder"
        raise DiskError(f"{path}: {error.strerror or error}", hint=hint) from error


def _folder(url: str) -> Path:
    if not url.startswith("file://"):
        return Path(url).expanduser().resolve()
    host, slash, path = url.removeprefix("file://").partition("/")
    if not slash or host not in ("", "localhost"):
        raise SpecError(
            f"{url}: a file URL must contain an absolute path", hint=f"file:///{host}{slash}{path}, or a plain path"
        )
    return Path("/" + unquote(path)).resolve()


def require_replaceable(path: Path) -> None:
    """Raise `DiskError` for a device or a pipe: as root, a rename would replace it for all programs."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DiskError(f"{path}: not a regular file", hint="name a regular file")


def temporary_name(path: Path) -> Path:
    """Return a unique hidden path beside `path`."""
    return path.with_name(f".{path.name[:60]}.{uuid.uuid4().hex}{TEMPORARY}")


def _copy(source: BinaryIO, target: Path, progress: Progress) -> None:
    with target.open("wb") as file:
        while chunk := source.read(COPY_BYTES):
            file.write(chunk)
            activity.record()
            progress(len(chunk))
    sync(target)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock file of a folder, to make a comparison and the next rename atomic; remove it afterwards. Its holder
    needs only a moment, unless it is stopped."""
    path, deadline = folder / LOCK, time.monotonic() + LONGEST_LOCK
    while (descriptor := open_locked(path)) is None:
        if time.monotonic() > deadline:
            raise StoreError(
                f"{path}: locked for {LONGEST_LOCK:.0f} s", hint="find and end the process that writes there and hangs"
            )
        time.sleep(0.002)
    with os.fdopen(descriptor):
        try:
            yield
        finally:
            path.unlink()


def open_locked(path: Path, mode: int = 0o666) -> int | None:
    """Open or create a file and lock it; return its descriptor, None if another thread or process holds it. Closing it,
    or the end of the process, unlocks it. Raises `OSError`."""
    while True:
        with ExitStack() as failure:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            failure.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            if is_open_file(path, descriptor):  # else its holder has removed it, so a lock on it has no effect
                failure.pop_all()
                return descriptor


def is_open_file(path: Path, descriptor: int) -> bool:
    """Return whether `path` is still the name of this open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
