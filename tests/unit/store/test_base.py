import hashlib
from pathlib import Path

import pytest

from cpmbee_job.errors import DamagedError
from cpmbee_job.store.base import ObjectInfo, download_verified, get_verified, listing_digest
from cpmbee_job.store.files import FileStore

DATA = b"content"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    store = FileStore(str(tmp_path / "store"))
    store.put("a", DATA)
    return store


def test_intact_object_is_returned_and_downloaded_once(store: FileStore, tmp_path: Path) -> None:
    assert get_verified(store, "a", len(DATA), SHA256) == DATA
    moved: list[int] = []
    download_verified(store, "a", tmp_path / "a", len(DATA), SHA256, moved.append)
    store.delete("a")
    download_verified(store, "a", tmp_path / "a", len(DATA), SHA256, moved.append)
    assert (tmp_path / "a").read_bytes() == DATA
    assert moved == [len(DATA), len(DATA)]


@pytest.mark.parametrize(("size", "sha256"), [(len(DATA) + 1, SHA256), (len(DATA), "0" * 64)])
def test_other_size_or_hash_is_an_error(store: FileStore, tmp_path: Path, size: int, sha256: str) -> None:
    with pytest.raises(DamagedError, match="a: size or SHA-256 differs"):
        get_verified(store, "a", size, sha256)
    with pytest.raises(DamagedError, match="a: size or SHA-256 differs"):
        download_verified(store, "a", tmp_path / "a", size, sha256)


def test_listing_digest_changes_with_any_object():
    listing = [ObjectInfo("a", 1, "x"), ObjectInfo("b", 2, "y")]
    digest = listing_digest(listing)
    assert listing_digest(reversed(listing)) == digest
    assert listing_digest([ObjectInfo("a", 1, "z"), listing[1]]) != digest
    assert listing_digest(listing[:1]) != digest
