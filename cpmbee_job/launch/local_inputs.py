"""Upload the local inputs of a spec to the object store, where the pods can read them.

Object keys contain a digest of the content. Files are hashed first, so the same files always have the same URL,
and existing objects are not uploaded again.
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
"""Opens a progress bar with a title, for a number of bytes."""

THREADS = 8
LARGE_BYTES = 16 << 20
"""A store uploads larger files in parallel parts."""


def no_bar(_title: str, _num_bytes: int) -> AbstractContextManager[Progress]:
    """The null `Bar`."""
    return nullcontext(no_progress)


@dataclass(frozen=True)
class InputFile:
    """A file, with its size and time of modification when it was found."""

    name: str
    """Relative to the folder of the upload."""
    path: Path
    size: int
    modified_ns: int

    def require_unchanged(self) -> None:
        """Raise `StoreError` if size or time of modification differ from when it was found."""
        with translate_os_errors(self.path):
            state = self.path.stat()
        if (state.st_size, state.st_mtime_ns) != (self.size, self.modified_ns):
            raise StoreError(
                f"{self.path}: changed while it was uploaded", hint="submit again when it is no longer written to"
            )


@dataclass(frozen=True)
class LocalInput:
    """A local path in a spec: a folder with these files, or a file (and its manifest, if it is a delta)."""

    is_folder: bool
    files: tuple[InputFile, ...]


Uploads = dict[str, tuple[InputFile, str]]
"""By key in the folder of all uploads: the file and its SHA-256."""


def find_inputs(spec: JobSpec) -> dict[str, LocalInput]:
    """Return the local inputs of the spec by dotted key.

    Raises `SpecError` with key and path for a missing input, or one that cannot be uploaded.
    """
    local = {field: url for field, url in spec.inputs.items() if not url.startswith("s3://")}
    return {field: _find(field, FileStore(url).root) for field, url in local.items()}


def hash_inputs(spec: JobSpec, inputs: Mapping[str, LocalInput], bar: Bar = no_bar) -> tuple[JobSpec, Uploads]:
    """Return the spec with the URLs that the inputs will have, and the uploads. Writes nothing."""
    if not inputs:
        return spec, {}
    urls: dict[str, str] = {}
    uploads: Uploads = {}
    with bar("hash", sum(file.size for place in inputs.values() for file in place.files)) as progress:
        for field, place in inputs.items():
            hashed = [(file, _sha256(file, progress)) for file in place.files]
            digest = documents.digest(sorted([file.name, file.size, sha256] for file, sha256 in hashed))
            uploads |= {f"{digest}/{file.name}": (file, sha256) for file, sha256 in hashed}
            folder = f"{keys.uploads_url(spec.output)}/{digest}/"
            urls[field] = folder if place.is_folder else folder + place.files[0].name
    return spec.with_fields(urls), uploads


def upload_inputs(uploads: Uploads, store: Store, bar: Bar = no_bar) -> int:
    """Upload missing files to `store`, the folder of all uploads. Returns the number of bytes.

    Raises `StoreError` for a file that changes meanwhile.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        stored = zip(uploads.items(), pool.map(store.info, uploads), strict=True)
        missing = {
            key: (file, sha256)
            for (key, (file, sha256)), entry in stored
            if entry is None or (entry.size, entry.sha256) != (file.size, sha256)
        }
        num_bytes = sum(file.size for file, _ in missing.values())
        if not missing:
            return 0
        with bar("upload", num_bytes) as progress:
            small = {key for key, (file, _) in missing.items() if file.size < LARGE_BYTES}
            tasks = [pool.submit(_upload, store, key, *missing[key], progress) for key in small]
            try:
                for key in missing.keys() - small:  # in the main thread, the only one that Ctrl-C interrupts
                    _upload(store, key, *missing[key], progress)
                for task in tasks:
                    task.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return num_bytes


def _upload(store: Store, key: str, file: InputFile, sha256: str, progress: Progress) -> None:
    store.upload(file.path, key, progress, sha256=sha256)
    entry = store.info(key)
    try:
        file.require_unchanged()
        if entry is None or entry.sha256 != sha256:
            raise StoreError(f"{file.path}: changed while it was uploaded", hint="submit again")
    except StoreError:
        store.delete(key)  # the content does not match the digest in the key
        raise


def _sha256(file: InputFile, progress: Progress) -> str:
    digest = hashlib.sha256()
    with translate_os_errors(file.path), file.path.open("rb") as stream:
        while chunk := stream.read(COPY_BYTES):
            digest.update(chunk)
            progress(len(chunk))
    file.require_unchanged()
    return digest.hexdigest()


def _find(field: str, path: Path) -> LocalInput:
    if not path.exists():
        raise SpecError(f"{field}: {path}: no such file or folder")
    if field == "model" and not path.is_dir():
        raise SpecError(f"model: {path}: must be a folder, not a file", hint="name the folder that contains it")
    if field == "lora.init_from":
        path = find_delta(path)
    if path.is_dir():
        files = tuple(_folder(field, path, deep=field.startswith("data.")))
        if not files:
            raise SpecError(
                f"{field}: {path}: no files in that folder", hint="names that start with '.' or '_' are ignored"
            )
        if field == "model":
            check_model(str(path), [file.name for file in files])
        return LocalInput(True, files)
    files = (_file(field, path.name, path),)
    beside = path.with_name(keys.DELTA_MANIFEST)  # contains r and alpha
    if field == "lora.init_from" and beside.is_file():
        files += (_file(field, beside.name, beside),)
    return LocalInput(False, files)


def find_delta(path: Path) -> Path:
    """Return the delta folder or file; for a run's folder, its best delta."""
    if not path.is_dir():
        if path.suffix not in DELTA_SUFFIXES:
            raise SpecError(f"lora.init_from: {path}: not a delta", hint="name a delta folder, or its .pt file")
        return path
    try:
        return path / best_prefix(FileStore(str(path)))
    except DamagedError as error:
        raise SpecError(f"lora.init_from: {path / keys.BEST}: corrupt pointer") from error


def _folder(field: str, root: Path, *, deep: bool) -> Iterator[InputFile]:
    """Yield the files of a folder sorted by name; with `deep`, also those of its subfolders. Raises `SpecError` for
    links to folders: `local` does not follow them, and they may be circular."""

    def refuse(error: OSError) -> None:
        raise SpecError(f"{field}: {error.filename}: {error.strerror}")

    for folder, below, names in os.walk(root, onerror=refuse):
        below[:] = sorted(name for name in below if deep and not name.startswith((".", "_")))
        for name in below:
            if (Path(folder) / name).is_symlink():
                raise SpecError(
                    f"{field}: {Path(folder) / name}: a link to a folder is not followed",
                    hint="name the target, or copy it",
                )
        for name in sorted(name for name in names if not name.startswith((".", "_"))):
            path = Path(folder) / name
            yield _file(field, path.relative_to(root).as_posix(), path)


def _file(field: str, name: str, path: Path) -> InputFile:
    if not path.is_file():
        raise SpecError(f"{field}: {path}: not a regular file, or a broken link")
    if not name.isprintable():
        raise SpecError(f"{field}: {str(path)!r}: not a valid object key", hint="rename the file")
    state = path.stat()
    return InputFile(name, path, state.st_size, state.st_mtime_ns)
