"""Only what is specific to a store of files; tests/integration/test_stores.py tests both stores."""

import fcntl
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from cpmbee_job.errors import ConflictError, NotFoundError, SpecError, StoreError
from cpmbee_job.store import files
from cpmbee_job.store.files import LOCK, FileStore, whole_file
from cpmbee_job.store.urls import list_objects, open_object, open_store


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(str(tmp_path / "store"))


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "file://{}/", "file://localhost{}"])
def test_forms_of_a_url(tmp_path: Path, form: str) -> None:
    url = form.format(tmp_path)
    assert open_store(url).local_path("a/b") == tmp_path / "a" / "b"
    assert open_store(url).url == url.rstrip("/")


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_store("runs").put("a", b"1")
    assert (tmp_path / "runs" / "a").read_bytes() == b"1"
    store, key = open_object("../" + tmp_path.name + "/runs/a")
    assert store.get(key) == b"1"
    store, key = open_object("file.txt")
    assert store.local_path(key) == tmp_path / "file.txt"


def test_percent_encoding_is_decoded_only_in_a_url(tmp_path: Path) -> None:
    assert FileStore(f"file://{tmp_path}/a%20b").root == tmp_path / "a b"
    assert FileStore(f"{tmp_path}/a%20b").root == tmp_path / "a%20b"


@pytest.mark.parametrize("url", ["file://runs/x", "file://"])
def test_file_url_must_be_absolute(url: str) -> None:
    with pytest.raises(SpecError, match="absolute path"):
        FileStore(url)


@pytest.mark.parametrize("url", ["gs://bucket/x", "http://host/x"])
def test_unknown_scheme(url: str) -> None:
    with pytest.raises(SpecError, match="unsupported scheme"):
        open_store(url)


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "/", "file:///"])
def test_url_without_an_object(url: str) -> None:
    with pytest.raises(SpecError, match="names no object"):
        open_object(url)


def test_object_in_the_root_folder() -> None:
    store, key = open_object("/etc-of-nobody")
    assert store.local_path(key) == Path("/etc-of-nobody")


def test_current_folder_as_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{}")
    monkeypatch.chdir(tmp_path)
    _, objects = list_objects(".")
    assert [entry.key for entry in objects] == ["a.jsonl"]


def test_symlinked_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    FileStore(str(tmp_path / "link")).put("a", b"1")
    assert (tmp_path / "real" / "a").read_bytes() == b"1"


def test_store_of_a_missing_folder_is_empty(store: FileStore) -> None:
    assert list(store.list()) == []
    assert not store.root.exists()


def test_missing_folder_has_no_folders(store: FileStore) -> None:
    assert store.folders() == []


def test_files_have_the_permissions_of_the_umask(store: FileStore, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    store.put("a", b"1")
    store.download("a", tmp_path / "copy")
    assert store.local_path("a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "copy").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_no_hidden_files_remain(store: FileStore) -> None:
    store.put("a", b"1")
    store.put("a", b"2", if_match=store.put("b", b"1", if_none_match=True))
    with pytest.raises(ConflictError):
        store.put("b", b"1", if_none_match=True)
    assert sorted(path.name for path in store.root.iterdir()) == ["a", "b"]


def test_remains_of_a_killed_writer_are_not_objects(store: FileStore) -> None:
    etag = store.put("a", b"1")
    (store.root / ".a.0123.cpmbee-tmp").write_bytes(b"half")
    (store.root / LOCK).touch()
    assert [entry.key for entry in store.list()] == ["a"]
    store.put("a", b"2", if_match=etag)
    assert store.get("a") == b"2"


def test_delete_removes_empty_folders(store: FileStore) -> None:
    store.put("checkpoints/50/state", b"1")
    store.put("checkpoints/100/state", b"1")
    store.delete("checkpoints/50/state")
    assert [path.name for path in (store.root / "checkpoints").iterdir()] == ["100"]
    store.delete("checkpoints/100/state")
    assert list(store.root.iterdir()) == []


def test_put_while_folders_are_created_and_removed(store: FileStore) -> None:
    def put_and_delete(name: str) -> None:
        for _ in range(200):
            store.put(f"folder/deep/{name}", b"1")
            assert store.get(f"folder/deep/{name}") == b"1"
            store.delete(f"folder/deep/{name}")

    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            put_and_delete(name)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.parametrize("size", [10, 3 << 20])
def test_etag_changes_with_the_content(store: FileStore, size: int) -> None:
    tags = set()
    for content in (b"a", b"b", b"c"):
        store.put("x", content * size)
        tags.add(store.info("x").etag)
    store.local_path("x").write_bytes(b"d" * size)
    tags.add(store.info("x").etag)
    assert len(tags) == 4


def test_conditional_put_waits_for_the_lock(store: FileStore) -> None:
    etag = store.put("a", b"1")
    with (store.root / LOCK).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread = threading.Thread(target=store.put, args=("a", b"2"), kwargs={"if_match": etag})
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert store.get("a") == b"1"
    thread.join()
    assert store.get("a") == b"2"


def count_up(root: str, rounds: int) -> None:
    store = FileStore(root)
    done = 0
    while done < rounds:
        data, etag = store.get_with_etag("counter")
        try:
            store.put("counter", b"%d" % (int(data) + 1), if_match=etag)
            done += 1
        except ConflictError:
            continue


def test_conditional_puts_of_processes_lose_no_update(store: FileStore) -> None:
    store.put("counter", b"0")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=count_up, args=(str(store.root), 30)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert store.get("counter") == b"90"


def test_put_below_a_file_fails(store: FileStore) -> None:
    store.put("a", b"1")
    with pytest.raises(StoreError, match="a file has the name of a folder"):
        store.put("a/b", b"2")
    assert store.info("a/b") is None


def test_put_below_a_broken_link_fails(store: FileStore, tmp_path: Path) -> None:
    store.put("a", b"1")
    (store.root / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="a file has the name of a folder"):
        store.put("link/b", b"2")


def test_put_over_a_folder_fails(store: FileStore) -> None:
    store.put("a/b", b"1")
    with pytest.raises(NotFoundError, match="a folder, not a file"):
        store.put("a", b"2")
    assert store.get("a/b") == b"1"


def test_put_where_no_folder_can_be_created_fails() -> None:
    with pytest.raises(StoreError, match="cannot create this folder"):
        FileStore("/proc/cpmbee").put("key", b"")


@pytest.mark.skipif(os.geteuid() == 0, reason="root has all permissions")
def test_put_without_write_permission_fails(store: FileStore) -> None:
    store.root.mkdir()
    store.root.chmod(0o500)
    with pytest.raises(StoreError, match="has no permission to read or write"):
        store.put("a", b"1")


def test_device_is_not_replaced(tmp_path: Path) -> None:
    device = tmp_path / "pipe"
    os.mkfifo(device)
    with pytest.raises(StoreError, match="not a regular file"), whole_file(device):
        pass
    with pytest.raises(StoreError, match="not a regular file"):
        FileStore(str(tmp_path)).put("pipe", b"")
    assert device.is_fifo()


def test_full_disk_is_reported(tmp_path: Path) -> None:
    def fill() -> None:
        with whole_file(tmp_path / "a"):
            Path("/dev/full").write_bytes(b"1")

    with pytest.raises(StoreError, match="free space"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_failed_block_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fail() -> None:
        with whole_file(tmp_path / "a") as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_upload_of_an_unreadable_source(store: FileStore, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="a folder, not a file"):
        store.upload(tmp_path, "a")
    assert list(store.list()) == []


def test_lock_that_is_never_released_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_LOCK", 0.1)
    with (tmp_path / LOCK).open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="locked"):
            FileStore(str(tmp_path)).put("a", b"1")
    FileStore(str(tmp_path)).put("a", b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
