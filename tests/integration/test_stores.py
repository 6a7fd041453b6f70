"""Behavior that both stores share."""

import filecmp
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cpmbee_job.errors import ConflictError, NotFoundError, SpecError, StoreError
from cpmbee_job.store.base import ObjectInfo, Store
from cpmbee_job.store.files import FileStore
from cpmbee_job.store.s3.bucket import S3Store
from cpmbee_job.store.urls import list_objects, open_object
from tests.integration.conftest import MIB, QUICK


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        return FileStore((tmp_path / "store").as_uri())
    storage = request.getfixturevalue("s3_storage")
    return S3Store(request.getfixturevalue("bucket"), storage, QUICK)


def test_object_comes_back_as_it_was_put(store: Store) -> None:
    etag = store.put("a/b.json", b"{}\n")
    assert store.get_with_etag("a/b.json") == (b"{}\n", etag)
    assert store.get("a/b.json") == b"{}\n"
    assert store.info("a/b.json") == ObjectInfo("a/b.json", 3, etag)


def test_empty_object(store: Store) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert [entry.size for entry in store.list()] == [0]


def test_tag_changes_with_the_content(store: Store) -> None:
    assert store.put("a", b"1") != store.put("a", b"2")


def test_put_replaces(store: Store) -> None:
    store.put("a", b"long before")
    store.put("a", b"new")
    assert store.get("a") == b"new"


def test_missing_object(store: Store, tmp_path: Path) -> None:
    assert store.info("nothing") is None
    store.delete("nothing")
    for read in (store.get, lambda key: store.get_range(key, 0, 1), lambda key: store.download(key, tmp_path / "x")):
        with pytest.raises(NotFoundError, match="nothing"):
            read("nothing")
    assert not (tmp_path / "x").exists()


def test_a_folder_is_not_an_object(store: Store) -> None:
    store.put("folder/a", b"1")
    assert store.info("folder") is None
    with pytest.raises(NotFoundError):
        store.get("folder")


def test_delete(store: Store) -> None:
    store.put("folder/a", b"1")
    store.delete("folder/a")
    assert store.info("folder/a") is None
    assert list(store.list()) == []
    store.put("folder/a", b"2")
    assert store.get("folder/a") == b"2"


def test_put_where_none_is(store: Store) -> None:
    store.put("a", b"first", if_none_match=True)
    with pytest.raises(ConflictError, match="exists already"):
        store.put("a", b"second", if_none_match=True)
    assert store.get("a") == b"first"


def test_put_over_what_was_read(store: Store) -> None:
    etag = store.put("a", b"1")
    newer = store.put("a", b"2", if_match=etag)
    assert store.info("a").etag == newer
    with pytest.raises(ConflictError, match="changed since it was read"):
        store.put("a", b"3", if_match=etag)
    assert store.get("a") == b"2"


def test_a_listed_etag_works_for_a_conditional_put(store: Store) -> None:
    store.put("a", b"1")
    (entry,) = store.list()
    store.put("a", b"2", if_match=entry.etag)
    assert store.get("a") == b"2"


def test_put_over_what_is_gone(store: Store) -> None:
    etag = store.put("a", b"1")
    store.delete("a")
    with pytest.raises(ConflictError):
        store.put("a", b"2", if_match=etag)
    assert store.info("a") is None


@pytest.mark.parametrize("round_", range(3))
def test_one_of_many_creates(store: Store, round_: int) -> None:
    results = race(lambda name: store.put(f"attempts/{round_}", name, if_none_match=True))
    (winner,) = [name for name, won in results.items() if won]
    assert store.get(f"attempts/{round_}") == winner


@pytest.mark.parametrize("round_", range(3))
def test_one_of_many_replaces(store: Store, round_: int) -> None:
    etag = store.put(f"LATEST{round_}", b"before")
    results = race(lambda name: store.put(f"LATEST{round_}", name, if_match=etag))
    (winner,) = [name for name, won in results.items() if won]
    assert store.get(f"LATEST{round_}") == winner


def race(put) -> dict[bytes, bool]:
    """Put from eight threads at the same moment. Return whether each succeeded, by writer."""
    barrier = threading.Barrier(8)

    def contend(name: bytes) -> bool:
        barrier.wait()
        try:
            put(name)
        except ConflictError:
            return False
        return True

    names = [b"writer %d" % index for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(contend, names), strict=True))


def test_range(store: Store) -> None:
    store.put("a", bytes(range(100)))
    assert store.get_range("a", 10, 5) == bytes(range(10, 15))
    assert store.get_range("a", 95, 5) == bytes(range(95, 100))
    assert store.get_range("a", 3, 0) == b""


@pytest.mark.parametrize(("start", "length"), [(95, 6), (100, 1), (1000, 1)])
def test_range_beyond_the_end(store: Store, start: int, length: int) -> None:
    store.put("a", bytes(100))
    with pytest.raises(StoreError):
        store.get_range("a", start, length)


def test_list_is_sorted_and_recursive(store: Store) -> None:
    keys = ["b", "a/z", "a/b/c", "a-1", "a.txt", "10", "9", "中文 name+%20.json", ".hidden"]
    for key in keys:
        store.put(key, key.encode())
    assert [entry.key for entry in store.list()] == sorted(keys, key=str.encode)
    assert all(store.info(entry.key) == entry for entry in store.list())


def test_only_direct_subfolders_are_listed(store: Store) -> None:
    for key in ("b/x/1", "b/y", "a/1", "top", "c/d/e/f"):
        store.put(key, b"1")
    assert store.folders() == ["a", "b", "c"]
    assert store.folders("b") == ["x"]
    assert store.folders("c/d") == ["e"]
    assert store.folders("top") == []
    assert store.folders("nothing") == []


def test_list_prefix_is_text(store: Store) -> None:
    for key in ("part-0", "part-1/x", "part", "other", "deep/part-0"):
        store.put(key, b"")
    assert [entry.key for entry in store.list("part-")] == ["part-0", "part-1/x"]
    assert [entry.key for entry in store.list("deep/")] == ["deep/part-0"]
    assert list(store.list("none/")) == []
    assert list(store.list("../")) == []


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../../up", "a/.", "a/", "nul\0"])
def test_key_stays_in_its_folder(store: Store, key: str) -> None:
    with pytest.raises(SpecError):
        store.put(key, b"1")


def test_a_file_is_uploaded_and_downloaded(store: Store, big: Path, tmp_path: Path) -> None:
    moved: list[int] = []
    store.upload(big, "big", moved.append)
    assert sum(moved) == big.stat().st_size
    assert store.info("big").size == big.stat().st_size
    moved.clear()
    store.download("big", tmp_path / "new" / "copy", moved.append)
    assert sum(moved) == big.stat().st_size
    assert filecmp.cmp(tmp_path / "new" / "copy", big, shallow=False)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["copy"]
    assert store.get_range("big", 6 * MIB, MIB) == big.read_bytes()[6 * MIB : 7 * MIB]
    assert store.get("big") == big.read_bytes()


def test_small_and_empty_files(store: Store, tmp_path: Path) -> None:
    for content in (b"", b"small"):
        (tmp_path / "in").write_bytes(content)
        store.upload(tmp_path / "in", "x")
        store.download("x", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == content == store.get("x")


def test_upload_of_no_file(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        store.upload(tmp_path / "absent", "x")
    assert store.info("x") is None


def test_download_over_an_older_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    store.put("x", b"new")
    store.download("x", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"new"


def test_threads_share_a_store(store: Store) -> None:
    def work(index: int) -> bool:
        data = b"%d" % index * 1000
        store.put(f"t/{index}", data)
        return store.get(f"t/{index}") == data

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))
    assert len(list(store.list("t/"))) == 40


def test_object_and_folder_by_url(store: Store, request: pytest.FixtureRequest) -> None:
    storage = request.getfixturevalue("s3_storage") if store.url.startswith("s3:") else None
    for key in ("data/a.jsonl", "data/b/c.jsonl", "data/.hidden", "data/_meta", "database"):
        store.put(key, b"1")
    found, objects = list_objects(f"{store.url}/data", storage)
    assert [entry.key for entry in objects] == ["a.jsonl", "b/c.jsonl"]
    assert found.get("b/c.jsonl") == b"1"
    found, objects = list_objects(f"{store.url}/data/a.jsonl", storage)
    assert [entry.key for entry in objects] == ["a.jsonl"]
    folder, key = open_object(f"{store.url}/data/a.jsonl", storage)
    assert folder.get(key) == b"1"
    with pytest.raises(NotFoundError, match="no such object or folder"):
        list_objects(f"{store.url}/nowhere", storage)
