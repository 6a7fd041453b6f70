import pytest

from cpmbee_job.errors import StoreError
from cpmbee_job.store import ranges
from cpmbee_job.store.files import FileStore
from cpmbee_job.store.ranges import CachedObject

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
    monkeypatch.setattr(ranges.shutil, "disk_usage", lambda _folder: type("Usage", (), {"free": len(DATA)}))
    assert read(cached()) == read(cached()) == DATA[7 : 7 + LENGTH]
    assert store.reads == 2
    assert "not cached" in caplog.text
    assert not list((tmp_path / "cache").rglob("*-*"))


def test_unwritable_cache_is_disabled_with_a_warning(cached, store, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    found = cached()
    assert read(found) == read(found) == DATA[7 : 7 + LENGTH]
    assert caplog.text.count("not cached") == 1
