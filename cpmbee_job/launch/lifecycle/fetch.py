"""What a run has left in the store, as a folder of this machine that appears whole or not at all."""

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
from cpmbee_job.run.deltas import read_delta
from cpmbee_job.run.pointers import read_delta_pointer
from cpmbee_job.store.base import ObjectInfo, Store
from cpmbee_job.store.files import is_open_file, temporary_name, translate_os_errors
from cpmbee_job.store.verified import download_verified

OBJECTS = {"metrics": keys.METRICS, "result": keys.RESULT, "spec": keys.SPEC, "status": keys.STATUS}
FOLDERS = {"logs": "logs/", "tensorboard": "tensorboard/"}
KINDS = ("delta", *OBJECTS, *FOLDERS)
DEFAULT = ("delta", "metrics", "result", "spec", "logs")
DELTA_FOLDER = "delta"
_TRIES = 3
"""Looks at a delta that training may replace and prune meanwhile."""


def fetch(
    store: Store, target: Path, kinds: Sequence[str] | None = None, *, last: bool = False, bar: Bar = no_bar
) -> list[str]:
    """Copy these kinds of things (default: `DEFAULT`, as far as they are there) of the run in `store` to the new folder
    `target`, the best delta or the last one; returns the names of the files.

    The delta's files are checked against its manifest. A target that holds exactly this is left alone, any other is
    refused (`RefusedError`). After a cut the next call goes on with what has arrived. Raises `NotFoundError` where the
    delta, or what was named, is not there (yet), `DamagedError` where a hash does not hold.
    """
    wanted = DEFAULT if kinds is None else tuple(kinds)
    if unknown := [kind for kind in wanted if kind not in KINDS]:
        raise UsageError(f"--what {unknown[0]}: no such thing", hint=f"there are {', '.join(KINDS)}")
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
    """The objects to copy, but for the delta's. `strict`: what is wanted must be there."""
    entries: list[ObjectInfo] = []
    for kind in wanted:
        if kind in OBJECTS:
            entry = store.info(OBJECTS[kind])
            found = [] if entry is None else [entry]
        else:
            found = list(store.list(FOLDERS[kind])) if kind in FOLDERS else []
        if strict and not found and kind != "delta":
            raise NotFoundError(f"{store.url}: no {kind} there (yet)")
        entries += found
    return entries


def _fetch_delta(store: Store, folder: Path, last: bool, bar: Bar) -> list[str]:
    """Returns the names of its files, below `folder`."""
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
            continue  # there is a better one by now
        break
    # So `--delta` takes the whole folder too, as it takes a run's.
    (folder / keys.BEST).write_bytes(documents.to_json({"prefix": f"{DELTA_FOLDER}/"}))
    return [keys.BEST, *(f"{DELTA_FOLDER}/{name}" for name in (*files, keys.DELTA_MANIFEST))]


def _keep_only(folder: Path, names: list[str]) -> None:
    """Removes what else an earlier call has left in the folder."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            with suppress(OSError):  # not empty
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in names:
            path.unlink()


def _require_same(target: Path, folder: Path, names: list[str]) -> None:
    """Raises `RefusedError` where the target holds anything else than these files."""
    there = {Path(at, name).relative_to(target).as_posix() for at, _, files in os.walk(target) for name in files}
    if there != set(names) or filecmp.cmpfiles(folder, target, names, shallow=False)[0] != names:
        raise RefusedError(
            f"{target}: is there already, and holds something else", hint="remove it, or name another folder by --to"
        )


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target, gone at the end where it was not renamed. After a cut it stays for the next
    call; where another process is at it, this one gets a folder of its own."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        raise RefusedError(f"{target}: a file", hint="name another folder by --to")
    folder = target.with_name(f".cpmbee-fetch-{documents.digest(target.name)}")
    descriptor = _hold(folder)
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


def _hold(folder: Path) -> int | None:
    """Makes the folder where there is none, and locks it; None where another process has."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_open_file(folder, descriptor):  # else its holder has just renamed or removed it
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
