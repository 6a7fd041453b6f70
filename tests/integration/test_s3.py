"""Behavior specific to S3, and faults of its server and of the network."""

import filecmp
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from cpmbee_job.errors import ConflictError, SpecError, StoreError
from cpmbee_job.launch.lifecycle.garbage import collect, find_garbage
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.s3.bucket import S3Store
from cpmbee_job.store.urls import open_store
from tests.integration.conftest import BUCKET, MIB, QUICK, EmbeddedS3
from tests.integration.faults import FaultProxy

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


def test_a_wrong_secret_is_reported_without_printing_it(
    s3_storage: StorageSpec, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_an_unreachable_server_is_reported(bucket: str) -> None:
    storage = StorageSpec().model_copy(update={"endpoint_url": "http://user:word@127.0.0.1:9"})  # as an option gives it
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9 cannot be reached") as caught:
        S3Store(bucket, storage, QUICK).get("a")
    assert "storage.endpoint_url" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "storage", "message"),
    [
        ("s3://", {}, "names no bucket"),
        ("s3://tests/x", {"endpoint_url": "no address"}, "storage.endpoint_url"),
        ("s3://tests/x", {"ca_bundle": "/no/such.pem"}, "storage.ca_bundle"),
    ],
)
def test_wrong_settings(url: str, storage: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        S3Store(url, StorageSpec().model_copy(update=storage))


def test_an_altered_object_written_by_another_client_is_detected(
    s3: EmbeddedS3, bucket: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    client = boto3.client("s3", endpoint_url=s3.endpoint_url, region_name="us-east-1")
    client.put_object(Bucket=BUCKET, Key=f"{bucket.rpartition('/')[2]}/a", Body=b"0" * 1000)
    store = S3Store(bucket, StorageSpec(endpoint_url=proxy.url), QUICK)
    proxy.fail("alter", 1)
    assert store.get("a") == b"0" * 1000
    proxy.fail("alter", 1)
    store.download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0" * 1000
    assert proxy.hits == 2


def test_parts_of_an_interrupted_upload_are_found_and_deleted(s3: EmbeddedS3, bucket: str) -> None:
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
    store.discard(leftover)  # another process was faster
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
def test_a_lost_put_of_equal_bytes_does_not_succeed(shaky: S3Store, proxy: FaultProxy, kind: str) -> None:
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
    assert shaky.get("big") == big.read_bytes()


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
    assert filecmp.cmp(tmp_path / "copy", big, shallow=False)
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
