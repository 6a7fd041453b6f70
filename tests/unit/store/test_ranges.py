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
def kept(store, tmp_path):
    """An object, as each process that starts finds it."""
    return lambda: CachedObject(store, store.info("weights"), tmp_path / "cache")


def read(found, start=7, lengths=(LENGTH,)):
    buffers = [bytearray(length) for length in lengths]
    found.read_into(start, [memoryview(buffer) for buffer in buffers])
    return b"".join(buffers)


def test_a_range_comes_from_the_store_once(kept, store):
    assert read(kept()) == DATA[7 : 7 + LENGTH]
    assert read(kept(), lengths=(10, 0, LENGTH - 10)) == DATA[7 : 7 + LENGTH]
    assert store.reads == 1


def test_a_kept_range_is_near(kept):
    assert not kept().is_near(7, LENGTH)
    read(kept())
    assert kept().is_near(7, LENGTH)
    assert not kept().is_near(7, LENGTH + 1)


def test_short_ranges_are_not_worth_a_file(kept, store):
    assert read(kept(), 3, (100,)) == read(kept(), 3, (100,)) == DATA[3:103]
    assert store.reads == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: bytes(len(data)), lambda data: data + b"x"])
def test_a_damaged_range_comes_from_the_store_again(kept, store, tmp_path, damage):
    read(kept())
    (path,) = (tmp_path / "cache").rglob(f"7-{LENGTH}")
    path.write_bytes(damage(path.read_bytes()))
    assert read(kept()) == DATA[7 : 7 + LENGTH]
    assert store.reads == 2
    read(kept())
    assert store.reads == 2


def test_another_content_is_another_object(kept, store):
    read(kept())
    store.put("weights", DATA[::-1])
    assert read(kept()) == DATA[::-1][7 : 7 + LENGTH]


def test_an_object_that_changes_after_it_was_found_is_an_error(kept, store):
    found = kept()
    store.put("weights", DATA[::-1])
    with pytest.raises(StoreError, match="weights: changed while it was read"):
        read(found)


def test_a_disk_without_room_is_said_and_does_without(kept, store, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(ranges.shutil, "disk_usage", lambda _folder: type("Usage", (), {"free": len(DATA)}))
    assert read(kept()) == read(kept()) == DATA[7 : 7 + LENGTH]
    assert store.reads == 2
    assert "not cached" in caplog.text
    assert not list((tmp_path / "cache").rglob("*-*"))


def test_a_cache_that_can_t_be_written_is_said_and_does_without(kept, store, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    found = kept()
    assert read(found) == read(found) == DATA[7 : 7 + LENGTH]
    assert caplog.text.count("not cached") == 1
