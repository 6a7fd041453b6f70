"""Local model folders, and cached ranges; tests/integration/test_cache.py tests folders in S3."""

from pathlib import Path

import pytest

from cpmbee_job.errors import NotFoundError, StoreError
from cpmbee_job.store import cache
from cpmbee_job.store.cache import CachedObject, fetch_folder
from cpmbee_job.store.files import FileStore

DATA = bytes(range(256)) * 1024
LENGTH = 100_000


class CountingStore(FileStore):
    reads = 0

    def read_into(self, *arguments):
        self.reads += 1
        super().read_into(*arguments)


@pytest.fixture
def store(tmp_path):
    store = CountingStore(str(tmp_path / "store"))
    store.put("weights", DATA)
    return store


@pytest.fixture
def cached(store, tmp_path):
    """Return the object as a newly started process finds it."""
    return lambda: CachedObject(store, store.info("weights"), tmp_path / "cache")


def read(found, start=7, lengths=(LENGTH,)):
    buffers = [bytearray(length) for length in lengths]
    found.read_into(start, [memoryview(buffer) for buffer in buffers])
    return b"".join(buffers)


def test_range_is_read_from_the_store_once(cached, store):
    assert read(cached()) == DATA[7 : 7 + LENGTH]
    assert read(cached(), lengths=(10, 0, LENGTH - 10)) == DATA[7 : 7 + LENGTH]
    assert store.reads == 1


def test_cached_range_is_near(cached):
    assert not cached().is_near(7, LENGTH)
    read(cached())
    assert cached().is_near(7, LENGTH)
    assert not cached().is_near(7, LENGTH + 1)


def test_short_ranges_are_not_cached(cached, store):
    assert read(cached(), 3, (100,)) == read(cached(), 3, (100,)) == DATA[3:103]
    assert store.reads == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: bytes(len(data)), lambda data: data + b"x"])
def test_damaged_range_is_read_again(cached, store, tmp_path, damage):
    read(cached())
    (path,) = (tmp_path / "cache").rglob(f"7-{LENGTH}")
    path.write_bytes(damage(path.read_bytes()))
    assert read(cached()) == DATA[7 : 7 + LENGTH]
    assert store.reads == 2
    read(cached())
    assert store.reads == 2


def test_changed_object_is_not_read_from_the_cache(cached, store):
    read(cached())
    store.put("weights", DATA[::-1])
    assert read(cached()) == DATA[::-1][7 : 7 + LENGTH]


def test_object_that_changes_after_it_was_found_is_an_error(cached, store):
    found = cached()
    store.put("weights", DATA[::-1])
    with pytest.raises(StoreError, match="weights: changed while it was read"):
        read(found)


def test_full_disk_disables_the_cache_with_a_warning(cached, store, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _folder: type("Usage", (), {"free": len(DATA)}))
    assert read(cached()) == read(cached()) == DATA[7 : 7 + LENGTH]
    assert store.reads == 2
    assert "not cached" in caplog.text
    assert not list((tmp_path / "cache").rglob("*-*"))


def test_unwritable_cache_is_disabled_with_a_warning(cached, store, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    found = cached()
    assert read(found) == read(found) == DATA[7 : 7 + LENGTH]
    assert caplog.text.count("not cached") == 1


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}"])
def test_local_folder_is_used_in_place(tmp_path: Path, form: str) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    assert fetch_folder(form.format(tmp_path), cache_dir=tmp_path / "cache") == tmp_path
    assert not (tmp_path / "cache").exists()


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        fetch_folder(str(tmp_path / "absent"))


def test_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"1")
    with pytest.raises(NotFoundError, match="a file, not a folder"):
        fetch_folder(str(tmp_path / "model.bin"))


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with pytest.raises(NotFoundError, match="no files"):
        fetch_folder(str(tmp_path))
