"""Download what a run wrote to the store. The target folder appears only when it is complete."""

import fcntl
import filecmp
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cpmbee_job import documents
from cpmbee_job.errors import DamagedError, NotFoundError, RefusedError, StoreError, UsageError
from cpmbee_job.launch.local_inputs import Bar, no_bar
from cpmbee_job.run import keys
from cpmbee_job.run.deltas import read_delta, read_delta_pointer
from cpmbee_job.store.base import ObjectInfo, Store, download_verified
from cpmbee_job.store.files import is_open_file, temporary_name, translate_os_errors

OBJECTS = {"metrics": keys.METRICS, "result": keys.RESULT, "spec": keys.SPEC, "status": keys.STATUS}
FOLDERS = {"logs": "logs/", "tensorboard": "tensorboard/"}
KINDS = ("delta", *OBJECTS, *FOLDERS)
DEFAULT = ("delta", "metrics", "result", "spec", "logs")
DELTA_FOLDER = "delta"
_TRIES = 3
"""Tries to read a delta that training may prune meanwhile."""


def fetch(
    store: Store, target: Path, kinds: Sequence[str] | None = None, *, last: bool = False, bar: Bar = no_bar
) -> list[str]:
    """Download `kinds` (default: those of `DEFAULT` that exist) of the run in `store` to the new folder `target`, with
    the best delta or the last one. Returns the names of the files.

    The delta is verified against its manifest. A target with exactly these files is kept. An interrupted download is
    continued by the next call. Raises `RefusedError` if the target contains other files, `NotFoundError` if the delta
    or a requested kind does not exist, `DamagedError` if a file differs from its manifest.
    """
    wanted = DEFAULT if kinds is None else tuple(kinds)
    if unknown := [kind for kind in wanted if kind not in KINDS]:
        raise UsageError(f"--what: unknown kind {unknown[0]}", hint=f"must be one of {', '.join(KINDS)}")
    entries = _entries(store, wanted, strict=kinds is not None)
    names = [entry.key for entry in entries]
    with translate_os_errors(target), _draft(target) as folder:
        if "delta" in wanted:
            names += _fetch_delta(store, folder, last, bar)
        with bar("fetch", sum(entry.size for entry in entries)) as progress:
            for entry in entries:
                store.download(entry.key, folder / entry.key, progress)
        names.sort()
        _keep_only(folder, names)
        if target.is_dir() and any(target.iterdir()):
            _require_same(target, folder, names)
        else:
            folder.rename(target)
    return names


def _entries(store: Store, wanted: Sequence[str], *, strict: bool) -> list[ObjectInfo]:
    """Return the objects to download, without the delta. `strict`: each kind must exist."""
    entries: list[ObjectInfo] = []
    for kind in wanted:
        if kind in OBJECTS:
            entry = store.info(OBJECTS[kind])
            found = [] if entry is None else [entry]
        else:
            found = list(store.list(FOLDERS[kind])) if kind in FOLDERS else []
        if strict and not found and kind != "delta":
            raise NotFoundError(f"{store.url}: no {kind} yet")
        entries += found
    return entries


def _fetch_delta(store: Store, folder: Path, last: bool, bar: Bar) -> list[str]:
    """Download the delta to `folder`. Returns the names of its files."""
    pointer = keys.LAST if last else keys.BEST
    for attempt in range(1, _TRIES + 1):
        prefix = read_delta_pointer(store, pointer)
        try:
            files = read_delta(store, prefix).files
            with bar("delta", sum(file.size for file in files.values())) as progress:
                for name, file in files.items():
                    path = folder / DELTA_FOLDER / name
                    download_verified(store, prefix + name, path, file.size, file.sha256, progress)
            store.download(prefix + keys.DELTA_MANIFEST, folder / DELTA_FOLDER / keys.DELTA_MANIFEST)
        except NotFoundError:
            if attempt == _TRIES or read_delta_pointer(store, pointer) == prefix:
                raise
            continue  # replaced by a better one
        break
    # So that `--delta` accepts the target folder, like a run's folder.
    (folder / keys.BEST).write_bytes(documents.to_json({"prefix": f"{DELTA_FOLDER}/"}))
    return [keys.BEST, *(f"{DELTA_FOLDER}/{name}" for name in (*files, keys.DELTA_MANIFEST))]


def _keep_only(folder: Path, names: list[str]) -> None:
    """Delete other files that an interrupted call left in the folder."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            with suppress(OSError):  # not empty
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in names:
            path.unlink()


def _require_same(target: Path, folder: Path, names: list[str]) -> None:
    """Raise `RefusedError` unless the target contains exactly these files."""
    there = {Path(at, name).relative_to(target).as_posix() for at, _, files in os.walk(target) for name in files}
    if there != set(names) or filecmp.cmpfiles(folder, target, names, shallow=False)[0] != names:
        raise RefusedError(
            f"{target}: already exists, with other files", hint="delete it, or choose another folder with --to"
        )


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """Yield a hidden folder beside the target, which is deleted at the end unless it was renamed. It is kept after an
    interrupted download, for the next call. If another process uses it, yield a separate folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        raise RefusedError(f"{target}: is a file", hint="choose another folder with --to")
    folder = target.with_name(f".cpmbee-fetch-{documents.digest(target.name)}")
    descriptor = _lock(folder)
    lasting = descriptor is not None
    if descriptor is None:
        folder = temporary_name(target)
        folder.mkdir()
        descriptor = os.open(folder, os.O_RDONLY)
    keep = False
    try:
        yield folder
    except (StoreError, KeyboardInterrupt) as error:
        arrived = any(path.is_file() for path in folder.rglob("*"))
        keep = lasting and arrived and not isinstance(error, DamagedError)
        raise
    finally:
        if not keep and is_open_file(folder, descriptor):
            shutil.rmtree(folder)
        os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """Create the folder if it does not exist, and lock it; None if another process has locked it."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_open_file(folder, descriptor):  # otherwise another process has just renamed or deleted it
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
