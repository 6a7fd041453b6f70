"""Paths of this machine in a spec become objects that pods can read, under names made from their content.

Hashing comes first: the same files have the same URLs whoever uploads them, and what is there already stays.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from cpmbee_job import documents
from cpmbee_job.errors import DamagedError, SpecError, StoreError
from cpmbee_job.run import keys
from cpmbee_job.run.deltas import DELTA_SUFFIXES, best_prefix
from cpmbee_job.run.model_files import check_model
from cpmbee_job.spec import JobSpec
from cpmbee_job.store.base import Progress, Store, no_progress
from cpmbee_job.store.files import COPY_BYTES, FileStore, translate_os_errors

Bar = Callable[[str, int], AbstractContextManager[Progress]]
"""A progress bar with a title, over so many bytes."""

THREADS = 8
LARGE_BYTES = 16 << 20
"""A store moves what is larger in parallel parts by itself."""


def no_bar(_title: str, _num_bytes: int) -> AbstractContextManager[Progress]:
    """The null `Bar`."""
    return nullcontext(no_progress)


@dataclass(frozen=True)
class LocalFile:
    """A file as it was when it was looked at."""

    name: str
    """Below the upload's folder."""
    path: Path
    size: int
    modified_ns: int

    def has_changed(self) -> bool:
        with translate_os_errors(self.path):
            state = self.path.stat()
        return (state.st_size, state.st_mtime_ns) != (self.size, self.modified_ns)


@dataclass(frozen=True)
class LocalPlace:
    """What a path of the spec names: a folder with these files in it, or a file (and what belongs to it)."""

    is_folder: bool
    files: tuple[LocalFile, ...]


@dataclass(frozen=True)
class Upload:
    """Files that go to one folder of the store."""

    digest: str
    """Of their names and contents; the folder's name."""
    files: tuple[tuple[LocalFile, str], ...]
    """With the SHA-256 of each."""


def find_places(spec: JobSpec) -> dict[str, LocalPlace]:
    """By dotted key, what the paths of the spec name.

    Raises `SpecError` that names key and path where there are none, or what can't be uploaded.
    """
    local = {field: url for field, url in spec.inputs.items() if not url.startswith("s3://")}
    return {field: _find(field, FileStore(url).root) for field, url in local.items()}


def hash_places(spec: JobSpec, places: Mapping[str, LocalPlace], bar: Bar = no_bar) -> tuple[JobSpec, list[Upload]]:
    """The spec with the URLs that the files will have, and what has to go there. Nothing is written yet."""
    if not places:
        return spec, []
    urls: dict[str, str] = {}
    uploads = []
    with bar("hash", sum(file.size for place in places.values() for file in place.files)) as progress:
        for field, place in places.items():
            hashed = tuple((file, _sha256(file, progress)) for file in place.files)
            digest = documents.digest(sorted([file.name, file.size, sha256] for file, sha256 in hashed))
            uploads.append(Upload(digest, hashed))
            folder = f"{keys.uploads_url(spec.output)}/{digest}/"
            urls[field] = folder if place.is_folder else folder + place.files[0].name
    return spec.with_fields(urls), uploads


def send(uploads: list[Upload], store: Store, bar: Bar = no_bar) -> int:
    """Write what is not there yet to `store` (the uploads' folder); returns the number of bytes.

    Raises `StoreError` for a file that changes meanwhile.
    """
    wanted = {f"{upload.digest}/{file.name}": (file, sha256) for upload in uploads for file, sha256 in upload.files}
    with ThreadPoolExecutor(THREADS) as pool:
        stored = dict(zip(wanted, pool.map(store.info, wanted), strict=True))
        missing = {
            key: (file, sha256)
            for key, (file, sha256) in wanted.items()
            if (entry := stored[key]) is None or (entry.size, entry.sha256) != (file.size, sha256)
        }
        num_bytes = sum(file.size for file, _ in missing.values())
        if not missing:
            return 0
        with bar("upload", num_bytes) as progress:
            small = {key for key, (file, _) in missing.items() if file.size < LARGE_BYTES}
            tasks = [pool.submit(_send, store, key, *missing[key], progress) for key in small]
            try:
                for key in missing.keys() - small:  # in this thread, since only here Ctrl-C ends one half-way
                    _send(store, key, *missing[key], progress)
                for task in tasks:
                    task.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return num_bytes


def _send(store: Store, key: str, file: LocalFile, sha256: str, progress: Progress) -> None:
    store.upload(file.path, key, progress, sha256=sha256)
    entry = store.info(key)
    if file.has_changed() or entry is None or entry.sha256 != sha256:
        store.delete(key)  # its name would be a lie
        raise _changed(file.path)


def _changed(path: Path) -> StoreError:
    return StoreError(f"{path}: changed while it was uploaded", hint="submit again when nobody writes to it any more")


def _sha256(file: LocalFile, progress: Progress) -> str:
    digest = hashlib.sha256()
    with translate_os_errors(file.path), file.path.open("rb") as stream:
        while chunk := stream.read(COPY_BYTES):
            digest.update(chunk)
            progress(len(chunk))
    if file.has_changed():
        raise _changed(file.path)
    return digest.hexdigest()


def _find(field: str, path: Path) -> LocalPlace:
    if not path.exists():
        raise SpecError(f"{field}: {path}: no such file or folder")
    if field == "model" and not path.is_dir():
        raise SpecError(f"model: {path}: a file, not a folder", hint="name the folder that it lies in")
    if field == "lora.init_from":
        path = _delta(path)
    if path.is_dir():
        files = tuple(_folder(field, path, deep=field.startswith("data.")))
        if not files:
            raise SpecError(
                f"{field}: {path}: no files in that folder", hint="names that begin with '.' or '_' don't count"
            )
        if field == "model":
            check_model(str(path), [file.name for file in files])
        return LocalPlace(True, files)
    files = (_file(field, path.name, path),)
    beside = path.with_name(keys.DELTA_MANIFEST)  # it says r and alpha
    if field == "lora.init_from" and beside.is_file():
        files += (_file(field, beside.name, beside),)
    return LocalPlace(False, files)


def _delta(path: Path) -> Path:
    """The delta folder or file that is meant: of a run's folder its best delta."""
    if not path.is_dir():
        if path.suffix not in DELTA_SUFFIXES:
            raise SpecError(f"lora.init_from: {path}: no delta", hint="name a delta folder, or its .pt file")
        return path
    try:
        return path / best_prefix(FileStore(str(path)))
    except DamagedError as error:
        raise SpecError(f"lora.init_from: {path / keys.BEST}: names no delta") from error


def _folder(field: str, root: Path, *, deep: bool) -> Iterator[LocalFile]:
    """Its files in the order of their names; of folders in it too where it is `deep`. Links to folders are refused:
    `local` would not follow them, and they may lead in circles."""

    def refuse(error: OSError) -> None:
        raise SpecError(f"{field}: {error.filename}: {error.strerror}")

    for folder, below, names in os.walk(root, onerror=refuse):
        below[:] = sorted(name for name in below if deep and not name.startswith((".", "_")))
        for name in below:
            if (Path(folder) / name).is_symlink():
                raise SpecError(
                    f"{field}: {Path(folder) / name}: a link to a folder is not followed",
                    hint="name that folder itself, or copy it",
                )
        for name in sorted(name for name in names if not name.startswith((".", "_"))):
            path = Path(folder) / name
            yield _file(field, path.relative_to(root).as_posix(), path)


def _file(field: str, name: str, path: Path) -> LocalFile:
    if not path.is_file():
        raise SpecError(f"{field}: {path}: not a plain file, or a link to nothing")
    if not name.isprintable():
        raise SpecError(f"{field}: {str(path)!r}: can't be the name of an object", hint="rename it")
    state = path.stat()
    return LocalFile(name, path, state.st_size, state.st_mtime_ns)
