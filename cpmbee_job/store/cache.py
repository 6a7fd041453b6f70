"""Copy model folders from S3 to this machine's disk, once for all processes."""

import fcntl
import hashlib
import shutil
from collections.abc import Container
from pathlib import Path

from cpmbee_job.errors import NotFoundError, StoreError
from cpmbee_job.process.contract import default_cache_dir
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import ObjectInfo, Store, changed
from cpmbee_job.store.files import FileStore, sync, translate_os_errors
from cpmbee_job.store.urls import open_store


def fetch_folder(
    url: str,
    storage: StorageSpec | None = None,
    cache_dir: Path | None = None,
    only: Container[str] | None = None,
) -> Path:
    """Return a local folder with the objects directly in the folder at `url`, without its subfolders.

    A local folder is returned as is. For any other, the objects (or those in `only`) are copied to `cache_dir` under a
    digest of the URL and all ETags, except files that are already there. Of several processes, one copies and the
    others wait. Raises `NotFoundError` for a missing or empty folder, `StoreError` if a copy fails.
    """
    store = open_store(url, storage)
    if isinstance(store, FileStore):
        _require_files(url, store.root)
        return store.root
    objects = [entry for entry in store.list() if "/" not in entry.key]
    if not objects:
        raise NotFoundError(f"{url}: no such folder, or no files in it", hint="name the folder, and check the bucket")
    listing = "\n".join([url.rstrip("/"), *(f"{entry.key}\t{entry.size}\t{entry.etag}" for entry in objects)])
    digest = hashlib.sha256(listing.encode()).hexdigest()[:32]
    folder = (cache_dir or default_cache_dir()).absolute() / digest
    if only is not None:
        objects = [entry for entry in objects if entry.key in only]
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            missing = [entry for entry in objects if not _is_copied(folder, entry)]
            _require_space(folder, sum(entry.size for entry in missing))
            for entry in missing:
                _copy(store, entry, folder)
    return folder


def _require_files(url: str, folder: Path) -> None:
    with translate_os_errors(folder):
        if folder.is_file():
            raise NotFoundError(f"{url}: a file, not a folder", hint="name the folder that contains it")
        if not folder.is_dir():
            raise NotFoundError(f"{url}: no such folder", hint=f"its path is {folder}")
        if not any(entry.is_file() for entry in folder.iterdir()):
            raise NotFoundError(f"{url}: no files in that folder")


def _is_copied(folder: Path, entry: ObjectInfo) -> bool:
    path = folder / entry.key
    return path.is_file() and path.stat().st_size == entry.size


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{folder}: {needed / 1e9:.1f} GB required, {free / 1e9:.1f} GB free",
            hint="free space, or set CPMBEE_CACHE to a folder on a larger disk",
        )


def _copy(store: Store, entry: ObjectInfo, folder: Path) -> None:
    arrived = folder / f".{entry.key}.arrived"
    store.download(entry.key, arrived)
    if store.info(entry.key) != entry:
        arrived.unlink()
        raise changed(f"{store.url}/{entry.key}")
    sync(arrived)  # later calls check only its size, which must be right even after a power failure
    arrived.replace(folder / entry.key)
