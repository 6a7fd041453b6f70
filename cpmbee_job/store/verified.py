"""Read objects and files whose size and SHA-256 a manifest contains."""

import hashlib
from pathlib import Path

from cpmbee_job.errors import DamagedError
from cpmbee_job.store.base import Progress, Store, no_progress


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_intact(path: Path, size: int, sha256: str) -> bool:
    """Return whether the file exists and has this size and hash."""
    return path.is_file() and path.stat().st_size == size and file_sha256(path) == sha256


def get_verified(store: Store, key: str, size: int, sha256: str) -> bytes:
    """Return the object. Raises `DamagedError` if its size or hash is different."""
    data = store.get(key)
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise _damaged(store, key)
    return data


def download_verified(
    store: Store, key: str, path: Path, size: int, sha256: str, progress: Progress = no_progress
) -> None:
    """Download the object, unless an earlier call did so. Raises `DamagedError` if its size or hash is different."""
    if is_intact(path, size, sha256):
        progress(size)
        return
    store.download(key, path, progress)
    if not is_intact(path, size, sha256):
        raise _damaged(store, key)


def _damaged(store: Store, key: str) -> DamagedError:
    return DamagedError(f"{store.url}/{key}: size or SHA-256 differs from its manifest")
