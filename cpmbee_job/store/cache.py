"""Model folders from S3 on this machine's disk, copied once whoever asks."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Container
from pathlib import Path

from cpmbee_job.errors import NotFoundError, StoreError
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import ObjectInfo, Progress, Store, no_progress
from cpmbee_job.store.files import FileStore, explained, sync
from cpmbee_job.store.urls import open_store


def default_cache_dir() -> Path:
    """`$CPMBEE_CACHE`, else `cpmbee-job` in the user's cache folder."""
    if chosen := os.environ.get("CPMBEE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpmbee-job"


def fetch_folder(
    url: str,
    storage: StorageSpec | None = None,
    cache_dir: Path | None = None,
    progress: Progress = no_progress,
    only: Container[str] | None = None,
) -> Path:
    """A local folder with the objects directly in the folder at `url` (not those of folders in it).

    A folder of this machine is returned itself. Of any other, all objects (or those named in `only`) are copied to
    `cache_dir` under a name made from the URL and all objects' tags; files that are there already are not copied again.
    Safe in several processes at once: one copies, the others wait. Raises `NotFoundError` for a folder that is missing
    or empty, `StoreError` where a copy fails.
    """
    store = open_store(url, storage)
    if isinstance(store, FileStore):
        _require_files(url, store.root)
        return store.root
    objects = [entry for entry in store.list() if "/" not in entry.key]
    if not objects:
        raise NotFoundError(f"{url}: no folder with files in it", hint="name the folder itself, and check the bucket")
    cache_dir = (cache_dir or default_cache_dir()).absolute()
    folder = cache_dir / _digest(url, objects)
    if only is not None:
        objects = [entry for entry in objects if entry.key in only]
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            missing = [entry for entry in objects if not _is_copied(folder, entry)]
            _require_space(folder, sum(entry.size for entry in missing))
            progress(sum(entry.size for entry in objects if entry not in missing))
            for entry in missing:
                _copy(store, entry, folder, progress)
    return folder


def _require_files(url: str, folder: Path) -> None:
    with explained(folder):
        if folder.is_file():
            raise NotFoundError(f"{url}: a file, not a folder", hint="name the folder that it lies in")
        if not folder.is_dir():
            raise NotFoundError(f"{url}: no such folder", hint=f"it would be {folder}")
        if not any(entry.is_file() for entry in folder.iterdir()):
            raise NotFoundError(f"{url}: no files in that folder")


def _digest(url: str, objects: list[ObjectInfo]) -> str:
    listing = "\n".join([url.rstrip("/"), *(f"{entry.key}\t{entry.size}\t{entry.etag}" for entry in objects)])
    return hashlib.sha256(listing.encode()).hexdigest()[:32]


def _is_copied(folder: Path, entry: ObjectInfo) -> bool:
    path = folder / entry.key
    return path.is_file() and path.stat().st_size == entry.size


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{folder}: {needed / 1e9:.1f} GB to copy, {free / 1e9:.1f} GB free",
            hint="free some, or set CPMBEE_CACHE to a folder on a larger disk",
        )


def _copy(store: Store, entry: ObjectInfo, folder: Path, progress: Progress) -> None:
    arrived = folder / f".{entry.key}.arrived"
    store.download(entry.key, arrived, progress)
    now = store.info(entry.key)
    if now != entry:
        arrived.unlink()
        raise StoreError(f"{store.url}/{entry.key}: changed while it was copied", hint="try again")
    sync(arrived)  # from now on its size is all that is looked at, after a power failure too
    arrived.replace(folder / entry.key)
