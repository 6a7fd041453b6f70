"""What a run has left in the store, as a folder of this machine that appears whole or not at all."""

import filecmp
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpmbee_job import contract
from cpmbee_job.errors import DamagedError, NotFoundError, RefusedError, UsageError
from cpmbee_job.launch.inputs.upload import Bar, no_bar
from cpmbee_job.store.base import ObjectInfo, Progress, Store
from cpmbee_job.store.checksums import file_digest
from cpmbee_job.store.files import explained

OBJECTS = {"metrics": contract.METRICS, "result": contract.RESULT, "spec": contract.SPEC, "status": contract.STATUS}
FOLDERS = {"logs": "logs/", "tensorboard": "tensorboard/"}
KINDS = ("delta", *OBJECTS, *FOLDERS)
DEFAULT = ("delta", "metrics", "result", "spec", "logs")
DELTA_FOLDER = "delta"
_MANIFEST = "manifest.json"
_TRIES = 3
"""Looks at a delta that training may replace and prune meanwhile."""


def fetch(
    store: Store, target: Path, kinds: Sequence[str] | None = None, *, last: bool = False, bar: Bar = no_bar
) -> list[str]:
    """Copy these kinds of things (default: `DEFAULT`, as far as they are there) of the run in `store` to the new folder
    `target`, the best delta or the last one; returns the names of the files.

    The delta's files are checked against its manifest. A target that holds exactly this is left alone, any other is
    refused (`RefusedError`). Raises `NotFoundError` where the delta, or what was named, is not there (yet),
    `DamagedError` where a hash does not hold.
    """
    wanted = DEFAULT if kinds is None else tuple(kinds)
    if unknown := [kind for kind in wanted if kind not in KINDS]:
        raise UsageError(f"--what {unknown[0]}: no such thing", hint=f"there are {', '.join(KINDS)}")
    entries = _entries(store, wanted, strict=kinds is not None)
    with explained(target), _draft(target) as folder:
        if "delta" in wanted:
            _fetch_delta(store, folder, last, bar)
        with bar("fetch", sum(entry.size for entry in entries)) as progress:
            for entry in entries:
                store.download(entry.key, folder / entry.key, progress)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
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


def _fetch_delta(store: Store, folder: Path, last: bool, bar: Bar) -> None:
    pointer = contract.LAST if last else contract.BEST
    for attempt in range(1, _TRIES + 1):
        prefix = _prefix(store, pointer)
        try:
            manifest = _manifest(store, prefix)
            with bar("delta", sum(size for size, _ in manifest.values())) as progress:
                for name, (size, sha256) in manifest.items():
                    _fetch_checked(store, prefix + name, folder / DELTA_FOLDER / name, size, sha256, progress)
            store.download(prefix + _MANIFEST, folder / DELTA_FOLDER / _MANIFEST)
        except NotFoundError:
            if attempt == _TRIES or _prefix(store, pointer) == prefix:
                raise
            shutil.rmtree(folder / DELTA_FOLDER, ignore_errors=True)  # there is a better one by now
        else:
            break
    # So `--delta` takes the whole folder too, as it takes a run's.
    (folder / contract.BEST).write_bytes(contract.to_json({"prefix": f"{DELTA_FOLDER}/"}))


def _prefix(store: Store, pointer: str) -> str:
    try:
        return str(json.loads(store.get(pointer))["prefix"])
    except NotFoundError as error:
        raise NotFoundError(
            f"{store.url}: no delta yet (there is no {pointer})",
            hint="a delta is written at the end, and by every evaluation that is the best so far; "
            "`--what metrics,logs` fetches what there is",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{store.url}/{pointer}: names no delta") from error


def _manifest(store: Store, prefix: str) -> dict[str, tuple[int, str]]:
    """The delta's files, each with size and SHA-256."""
    place = f"{store.url}/{prefix}{_MANIFEST}"
    try:
        files: dict[str, Any] = json.loads(store.get(prefix + _MANIFEST))["files"]
        found = {name: (int(file["size"]), str(file["sha256"])) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{place}: does not name the delta's files and their hashes") from error
    if strange := [name for name in found if Path(name).name != name or name in ("", "..", _MANIFEST)]:
        raise DamagedError(f"{place}: {strange[0]!r} can't be one of its files")
    return found


def _fetch_checked(store: Store, key: str, path: Path, size: int, sha256: str, progress: Progress) -> None:
    store.download(key, path, progress)
    if path.stat().st_size != size or file_digest(path, hashlib.sha256()).hex() != sha256:
        raise DamagedError(f"{store.url}/{key}: its bytes are not those that the manifest names")


def _require_same(target: Path, folder: Path, names: list[str]) -> None:
    """Raises `RefusedError` where the target holds anything else than these files."""
    there = {Path(at, name).relative_to(target).as_posix() for at, _, files in os.walk(target) for name in files}
    if there != set(names) or filecmp.cmpfiles(folder, target, names, shallow=False)[0] != names:
        raise RefusedError(
            f"{target}: is there already, and holds something else", hint="remove it, or name another folder by --to"
        )


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A folder beside the target, gone at the end where it was not renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        raise RefusedError(f"{target}: a file", hint="name another folder by --to")
    with tempfile.TemporaryDirectory(prefix=".cpmbee-fetch-", dir=target.parent) as name:
        folder = Path(name) / "new"
        folder.mkdir()
        yield folder
