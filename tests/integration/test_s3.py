"""Both stores behave the same; S3 goes on doing so while its server and the network misbehave."""

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from cpmbee_job.errors import ConflictError, NotFoundError, SpecError, StoreError
from cpmbee_job.launch.lifecycle.garbage import collect, find_garbage
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import ObjectInfo, Store
from cpmbee_job.store.files import FileStore
from cpmbee_job.store.s3 import S3Store
from cpmbee_job.store.urls import list_objects, open_object, open_store
from tests.integration.conftest import BUCKET, MIB, QUICK, EmbeddedS3
from tests.integration.faults import FaultProxy


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        return FileStore((tmp_path / "store").as_uri())
    storage = request.getfixturevalue("s3_storage")
    return S3Store(request.getfixturevalue("bucket"), storage, QUICK)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of three parts."""
    path = tmp_path / "big.bin"
    path.write_bytes(os.urandom(12 * MIB + 12345))
    return path


# --- what both stores do -------------------------------------------------------------------------------------------


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


def test_folder_is_no_object(store: Store) -> None:
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
    with pytest.raises(ConflictError, match="no longer"):
        store.put("a", b"3", if_match=etag)
    assert store.get("a") == b"2"


def test_listed_tag_is_good_for_a_conditional_put(store: Store) -> None:
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
    """Eight threads put at the same moment: who won."""
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


def test_folders_are_those_directly_there(store: Store) -> None:
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


def test_file_goes_up_and_comes_down(store: Store, big: Path, tmp_path: Path) -> None:
    moved: list[int] = []
    store.upload(big, "big", moved.append)
    assert sum(moved) == big.stat().st_size
    assert store.info("big").size == big.stat().st_size
    moved.clear()
    store.download("big", tmp_path / "new" / "copy", moved.append)
    assert sum(moved) == big.stat().st_size
    assert same(tmp_path / "new" / "copy", big)
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
    with pytest.raises(NotFoundError, match="nothing there"):
        list_objects(f"{store.url}/nowhere", storage)


def same(one: Path, other: Path) -> bool:
    return hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()


# --- S3 alone ------------------------------------------------------------------------------------------------------


def test_more_than_a_page_of_objects(s3_storage: StorageSpec, bucket: str) -> None:
    store = S3Store(bucket, s3_storage)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: store.put(f"{index:04d}", b""), range(1010)))
    assert [entry.key for entry in store.list()] == [f"{index:04d}" for index in range(1010)]


def test_more_than_a_page_of_folders(s3_storage: StorageSpec, bucket: str) -> None:
    store = S3Store(bucket, s3_storage, QUICK)
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda n: store.put(f"{n:04d}/spec.yaml", b"1"), range(1005)))
    assert store.folders() == [f"{n:04d}" for n in range(1005)]


def test_bucket_without_prefix(s3_storage: StorageSpec, bucket: str) -> None:
    name = bucket.rpartition("/")[2]
    store = open_store(f"s3://{BUCKET}", s3_storage)
    store.put(f"{name}/a", b"1")
    assert [entry.key for entry in store.list(f"{name}/")] == [f"{name}/a"]


def test_missing_bucket(s3_storage: StorageSpec, tmp_path: Path) -> None:
    store = S3Store("s3://not-there/runs", s3_storage, QUICK)
    actions = [
        lambda: store.info("a"),
        lambda: store.get("a"),
        lambda: store.put("a", b"1"),
        lambda: store.put("a", b"1", if_none_match=True),
        lambda: list(store.list()),
        lambda: store.download("a", tmp_path / "a"),
    ]
    for action in actions:
        with pytest.raises(StoreError, match="no bucket 'not-there'"):
            action()


def test_wrong_secret_is_told_without_it(s3_storage: StorageSpec, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    store = S3Store(bucket, s3_storage, QUICK)
    with pytest.raises(StoreError, match="SignatureDoesNotMatch") as caught:
        store.get("a")
    assert "AWS_SECRET_ACCESS_KEY" in str(caught.value)
    assert "not-the-secret" not in str(caught.value)


def test_unknown_key(s3_storage: StorageSpec, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(StoreError, match="InvalidAccessKeyId"):
        S3Store(bucket, s3_storage, QUICK).put("a", b"1")


def test_no_credentials(s3_storage: StorageSpec, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="no credentials"):
        S3Store(bucket, s3_storage, QUICK).get("a")


def test_server_that_is_not_there(bucket: str) -> None:
    storage = StorageSpec().model_copy(update={"endpoint_url": "http://user:word@127.0.0.1:9"})  # as an option gives it
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9 can't be reached") as caught:
        S3Store(bucket, storage, QUICK).get("a")
    assert "storage.endpoint_url" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "storage", "words"),
    [
        ("s3://", {}, "names no bucket"),
        ("s3://tests/x", {"endpoint_url": "no address"}, "storage.endpoint_url"),
        ("s3://tests/x", {"ca_bundle": "/no/such.pem"}, "storage.ca_bundle"),
    ],
)
def test_wrong_settings(url: str, storage: dict[str, str], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        S3Store(url, StorageSpec().model_copy(update=storage))


def test_altered_object_of_others_is_found_out(s3: EmbeddedS3, bucket: str, proxy: FaultProxy, tmp_path: Path) -> None:
    client = boto3.client("s3", endpoint_url=s3.endpoint_url, region_name="us-east-1")
    client.put_object(Bucket=BUCKET, Key=f"{bucket.rpartition('/')[2]}/a", Body=b"0" * 1000)
    store = S3Store(bucket, StorageSpec(endpoint_url=proxy.url), QUICK)
    proxy.fail("alter", 1)
    assert store.get("a") == b"0" * 1000
    proxy.fail("alter", 1)
    store.download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0" * 1000
    assert proxy.hits == 2


def test_parts_of_an_upload_that_was_cut_are_found_and_forgotten(s3: EmbeddedS3, bucket: str) -> None:
    client = boto3.client("s3", endpoint_url=s3.endpoint_url, region_name="us-east-1")
    prefix = bucket.rpartition("/")[2]
    for key in (f"{prefix}/uploads/1/model.bin", f"{prefix}-not-ours/model.bin"):
        begun = client.create_multipart_upload(Bucket=BUCKET, Key=key)
        part = {"Bucket": BUCKET, "Key": key, "UploadId": begun["UploadId"], "PartNumber": 1}
        client.upload_part(**part, Body=bytes(5 * MIB))
    store = S3Store(bucket, StorageSpec(endpoint_url=s3.endpoint_url), QUICK)
    (leftover,) = store.leftovers()
    assert (leftover.key, leftover.size) == ("uploads/1/model.bin", 5 * MIB)
    assert abs(leftover.modified - time.time()) < 3600
    assert find_garbage(bucket, StorageSpec(endpoint_url=s3.endpoint_url), time.time() - 3600).garbage == ()
    findings = find_garbage(bucket, StorageSpec(endpoint_url=s3.endpoint_url), time.time() + 3600)
    assert [one.kind for one in findings.garbage] == ["cut upload"]
    collect(findings, StorageSpec(endpoint_url=s3.endpoint_url), lambda _: None)
    assert list(store.leftovers()) == []
    store.discard(leftover)  # somebody else was faster
    left = client.list_multipart_uploads(Bucket=BUCKET, Prefix=f"{prefix}-not-ours/")["Uploads"]
    client.abort_multipart_upload(Bucket=BUCKET, Key=left[0]["Key"], UploadId=left[0]["UploadId"])


# --- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["error", "slow_down", "hang", "drop", "drop_answer", "truncate", "alter"])
def test_get_survives(shaky: S3Store, proxy: FaultProxy, kind: str) -> None:
    shaky.put("a", b"content" * 100)
    proxy.fail(kind, 2)
    assert shaky.get("a") == b"content" * 100
    assert proxy.hits == 2


@pytest.mark.parametrize("kind", ["error", "hang", "drop", "truncate", "alter"])
def test_get_that_never_succeeds(shaky: S3Store, proxy: FaultProxy, kind: str) -> None:
    shaky.put("a", b"content" * 100)
    proxy.fail(kind, 100)
    with pytest.raises(StoreError, match="/a: "):
        shaky.get("a")


@pytest.mark.parametrize("kind", ["error", "hang", "drop", "truncate"])
def test_range_survives(shaky: S3Store, proxy: FaultProxy, kind: str) -> None:
    shaky.put("a", bytes(range(200)))
    proxy.fail(kind, 2)
    assert shaky.get_range("a", 50, 100) == bytes(range(50, 150))


@pytest.mark.parametrize("kind", ["error", "slow_down", "hang", "drop", "drop_answer"])
@pytest.mark.parametrize("condition", ["none", "if_none_match", "if_match"])
def test_put_survives(shaky: S3Store, proxy: FaultProxy, kind: str, condition: str) -> None:
    conditions = {"if_none_match": True} if condition == "if_none_match" else {}
    if condition == "if_match":
        conditions = {"if_match": shaky.put("a", b"before")}
    proxy.fail(kind, 1, method="PUT")
    etag = shaky.put("a", b"mine", **conditions)
    assert proxy.hits == 1
    assert shaky.get_with_etag("a") == (b"mine", etag)


@pytest.mark.parametrize("kind", ["error", "drop_answer"])
def test_lost_put_is_no_success_for_equal_bytes(shaky: S3Store, proxy: FaultProxy, kind: str) -> None:
    shaky.put("a", b"equal")
    proxy.fail(kind, 1, method="PUT")
    with pytest.raises(ConflictError):
        shaky.put("a", b"equal", if_none_match=True)


def test_put_that_never_succeeds_leaves_nothing(shaky: S3Store, proxy: FaultProxy) -> None:
    proxy.fail("error", 100, method="PUT")
    with pytest.raises(StoreError, match="planned by a test"):
        shaky.put("a", b"1")
    assert shaky.info("a") is None


@pytest.mark.parametrize("kind", ["error", "hang", "drop", "drop_answer"])
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_upload_survives(shaky: S3Store, proxy: FaultProxy, big: Path, kind: str, method: str) -> None:
    proxy.fail(kind, 1, method=method, key="uploadId" if method == "POST" else "")
    shaky.upload(big, "big")
    assert proxy.hits == 1
    assert hashlib.sha256(shaky.get("big")).digest() == hashlib.sha256(big.read_bytes()).digest()


def test_upload_that_never_succeeds_leaves_nothing(shaky: S3Store, proxy: FaultProxy, big: Path) -> None:
    proxy.fail("error", 100, method="PUT", key="partNumber=3")
    with pytest.raises(StoreError, match="planned by a test"):
        shaky.upload(big, "big")
    assert shaky.info("big") is None
    assert list(shaky.list()) == []


@pytest.mark.parametrize("kind", ["error", "hang", "drop", "truncate", "alter"])
def test_download_survives(shaky: S3Store, proxy: FaultProxy, big: Path, tmp_path: Path, kind: str) -> None:
    shaky.upload(big, "big")
    proxy.fail(kind, 2)
    moved: list[int] = []
    shaky.download("big", tmp_path / "copy", moved.append)
    assert proxy.hits == 2
    assert same(tmp_path / "copy", big)
    assert sum(moved) == big.stat().st_size


@pytest.mark.parametrize("kind", ["error", "truncate", "alter"])
def test_download_that_never_succeeds_leaves_nothing(
    shaky: S3Store, proxy: FaultProxy, big: Path, tmp_path: Path, kind: str
) -> None:
    shaky.upload(big, "big")
    proxy.fail(kind, 1000)
    with pytest.raises(StoreError, match="big"):
        shaky.download("big", tmp_path / "out" / "copy")
    assert list((tmp_path / "out").iterdir()) == []
