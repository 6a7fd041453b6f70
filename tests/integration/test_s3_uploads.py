"""Large files to S3, interrupted: the next call transfers only the missing parts and never mixes contents."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import boto3
import pytest

from cpmbee_job.errors import StoreError
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.embedded import EmbeddedS3
from cpmbee_job.store.s3.bucket import S3Store
from cpmbee_job.store.s3.client import Limits
from tests.integration.conftest import BUCKET, QUICK, TAIL
from tests.integration.faults import FaultProxy
from tests.integration.transfers import HEADERS, LONG_TIMEOUT, PART, alter, kill_when, sha256, stored

pytestmark = pytest.mark.usefixtures("cache")


def cut_before_the_last_part(store: S3Store, proxy: FaultProxy, big: Path, sha256: str | None = None) -> None:
    proxy.fail("error", 100, method="PUT", key="partNumber=4")
    with pytest.raises(StoreError):
        store.upload(big, "big", sha256=sha256)


def unfinished(s3: EmbeddedS3, bucket: str) -> list[str]:
    """Uploads to that folder that are neither completed nor aborted."""
    client = boto3.client("s3", endpoint_url=s3.endpoint_url, region_name="us-east-1")
    found = client.list_multipart_uploads(Bucket=BUCKET, Prefix=bucket.rpartition("/")[2])
    return [upload["Key"] for upload in found.get("Uploads", ())]


def parts_there(s3: EmbeddedS3, bucket: str) -> int:
    """How many parts of an unfinished upload to that folder the server has."""
    client = boto3.client("s3", endpoint_url=s3.endpoint_url, region_name="us-east-1")
    found = client.list_multipart_uploads(Bucket=BUCKET, Prefix=bucket.rpartition("/")[2]).get("Uploads", ())
    uploads = [{"Key": upload["Key"], "UploadId": upload["UploadId"]} for upload in found]
    return sum(len(client.list_parts(Bucket=BUCKET, **upload).get("Parts", ())) for upload in uploads)


def test_a_killed_upload_resumes(shaky: S3Store, proxy: FaultProxy, big: Path, s3: EmbeddedS3, bucket: str) -> None:
    proxy.fail("hang", 1000, method="PUT", key="partNumber=2")
    kill_when(
        lambda: proxy.hits > 0 and parts_there(s3, bucket) == 3,
        f"upload(Path({str(big)!r}), 'big')",
        shaky,
        proxy.url,
    )
    assert shaky.info("big") is None
    proxy.clear()
    moved: list[int] = []
    shaky.upload(big, "big", moved.append)
    assert PART <= proxy.uploaded < PART + HEADERS
    assert sum(moved) == big.stat().st_size
    assert stored(shaky) == big.read_bytes()
    assert unfinished(s3, bucket) == []


def test_a_failed_upload_resumes(steady: S3Store, proxy: FaultProxy, big: Path) -> None:
    proxy.fail("error", 100, method="PUT", key="partNumber=3")
    with pytest.raises(StoreError, match="planned by a test"):
        steady.upload(big, "big")
    proxy.clear()
    moved: list[int] = []
    steady.upload(big, "big", moved.append)
    assert PART + TAIL <= proxy.uploaded < PART + TAIL + HEADERS
    assert sum(moved) == big.stat().st_size
    assert stored(steady) == big.read_bytes()


@pytest.mark.parametrize("place", [0, PART + 1, 3 * PART])
def test_only_parts_that_differ_are_sent_for_changed_content(
    steady: S3Store, proxy: FaultProxy, big: Path, s3: EmbeddedS3, bucket: str, place: int
) -> None:
    cut_before_the_last_part(steady, proxy, big)
    alter(big, place)
    proxy.clear()
    steady.upload(big, "big")
    assert proxy.uploaded < TAIL + HEADERS + (0 if place == 3 * PART else PART)
    assert stored(steady) == big.read_bytes()
    assert unfinished(s3, bucket) == []


def test_content_whose_digest_is_known_is_never_mixed_with_another(
    steady: S3Store, proxy: FaultProxy, big: Path, s3: EmbeddedS3, bucket: str
) -> None:
    cut_before_the_last_part(steady, proxy, big, sha256=sha256(big))
    alter(big, 3 * PART)
    proxy.clear()
    steady.upload(big, "big", sha256=sha256(big))
    assert proxy.uploaded > 3 * PART
    assert stored(steady) == big.read_bytes()
    assert steady.info("big").sha256 == sha256(big)
    assert unfinished(s3, bucket) == []


def test_an_upload_with_a_known_digest_resumes_after_an_interruption(
    steady: S3Store, proxy: FaultProxy, big: Path
) -> None:
    cut_before_the_last_part(steady, proxy, big, sha256=sha256(big))
    proxy.clear()
    steady.upload(big, "big", sha256=sha256(big))
    assert proxy.uploaded < TAIL + HEADERS
    assert steady.info("big").sha256 == sha256(big)


def test_small_file_ends_an_older_upload(
    steady: S3Store, proxy: FaultProxy, big: Path, s3: EmbeddedS3, bucket: str, cache: Path
) -> None:
    cut_before_the_last_part(steady, proxy, big)
    assert len(unfinished(s3, bucket)) == len(list((cache / "uploads").iterdir())) == 1
    big.write_bytes(b"small")
    steady.upload(big, "big")
    assert stored(steady) == b"small"
    assert unfinished(s3, bucket) == []
    assert list((cache / "uploads").iterdir()) == []


@pytest.mark.parametrize(("age", "left"), [(timedelta(0), 0), (timedelta(hours=1), 1)])
def test_old_uploads_of_others_end_with_the_next(
    proxy: FaultProxy,
    big: Path,
    s3: EmbeddedS3,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    age: timedelta,
    left: int,
) -> None:
    limits = replace(QUICK, threads=1, abandoned_after=age)
    store = S3Store(bucket, StorageSpec(endpoint_url=proxy.url), limits)
    for key in ("big", "big-2"):
        proxy.fail("error", 3, method="PUT", key="partNumber=4")
        with pytest.raises(StoreError):
            store.upload(big, key)
    monkeypatch.setenv("CPMBEE_CACHE", f"{os.environ['CPMBEE_CACHE']}-of-another-machine")
    store.upload(big, "big")
    assert stored(store) == big.read_bytes()
    assert len(unfinished(s3, bucket)) == left + 1


def test_upload_that_was_aborted_meanwhile_begins_anew(
    steady: S3Store, proxy: FaultProxy, big: Path, s3: EmbeddedS3
) -> None:
    cut_before_the_last_part(steady, proxy, big)
    proxy.clear()
    client = boto3.client("s3", endpoint_url=s3.endpoint_url, region_name="us-east-1")
    for upload in client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]:
        client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
    moved: list[int] = []
    steady.upload(big, "big", moved.append)
    assert sum(moved) == big.stat().st_size
    assert stored(steady) == big.read_bytes()


def test_without_a_cache_folder_uploads_work(
    steady: S3Store, big: Path, cache: Path, s3: EmbeddedS3, bucket: str
) -> None:
    cache.write_bytes(b"a file where the folder should be")
    steady.upload(big, "big")
    assert stored(steady) == big.read_bytes()


def test_a_corrupt_upload_record_restarts_the_upload(
    steady: S3Store, proxy: FaultProxy, big: Path, cache: Path
) -> None:
    cut_before_the_last_part(steady, proxy, big)
    proxy.clear()
    (record,) = (cache / "uploads").iterdir()
    record.write_bytes(b'{"upload_id": ')
    steady.upload(big, "big")
    assert stored(steady) == big.read_bytes()


def test_bytes_altered_on_the_way_up_are_sent_again(shaky: S3Store, proxy: FaultProxy, big: Path) -> None:
    proxy.fail("alter_sent", 2, method="PUT", key="partNumber")
    shaky.upload(big, "big")
    assert proxy.hits == 2
    assert stored(shaky) == big.read_bytes()


def test_bodies_are_signed_for_a_server_that_checks_no_crc(
    shaky: S3Store, proxy: FaultProxy, big: Path, s3: EmbeddedS3, bucket: str
) -> None:
    shaky.upload(big, "checked")
    assert proxy.unsigned_bodies == 4
    proxy.clear()
    proxy.hidden.add("x-amz-checksum-algorithm")
    shaky.upload(big, "big")
    assert proxy.unsigned_bodies == 0
    assert stored(shaky) == big.read_bytes()
    assert shaky.info("big").sha256 == sha256(big)
    assert unfinished(s3, bucket) == []


def test_uploads_to_a_server_that_checks_no_crc_resume(steady: S3Store, proxy: FaultProxy, big: Path) -> None:
    proxy.hidden.add("x-amz-checksum-algorithm")
    proxy.fail("error", 100, method="PUT", key="partNumber=3")
    with pytest.raises(StoreError):
        steady.upload(big, "big")
    proxy.clear()
    steady.upload(big, "big")
    assert proxy.uploaded < PART + TAIL + HEADERS
    assert steady.info("big").sha256 == sha256(big)


def test_file_that_changes_is_not_uploaded(
    steady: S3Store, proxy: FaultProxy, big: Path, s3: EmbeddedS3, bucket: str
) -> None:
    def write(_: int) -> None:
        with big.open("ab") as file:
            file.write(b"more")

    with pytest.raises(StoreError, match=r"big\.bin: changed while it was uploaded"):
        steady.upload(big, "big", write)
    assert steady.info("big") is None
    assert unfinished(s3, bucket) == []


def test_several_upload_the_same_at_once(big: Path, proxy: FaultProxy, s3: EmbeddedS3, bucket: str) -> None:
    storage = StorageSpec(endpoint_url=proxy.url)
    with ThreadPoolExecutor(3) as pool:
        for call in [pool.submit(S3Store(bucket, storage, LONG_TIMEOUT).upload, big, "big") for _ in range(3)]:
            call.result()
    store = S3Store(bucket, storage, LONG_TIMEOUT)
    assert stored(store) == big.read_bytes()
    assert [entry.key for entry in store.list()] == ["big"]
    assert unfinished(s3, bucket) == []


def test_several_upload_different_things_at_once(
    big: Path, tmp_path: Path, bucket: str, s3_storage: StorageSpec, s3: EmbeddedS3
) -> None:
    files = [big]
    for number in range(2):
        files.append(tmp_path / str(number))
        files[-1].write_bytes(os.urandom(2 * PART + number))
    with ThreadPoolExecutor(3) as pool:
        for call in [pool.submit(S3Store(bucket, s3_storage, LONG_TIMEOUT).upload, file, "big") for file in files]:
            call.result()
    store = S3Store(bucket, s3_storage, LONG_TIMEOUT)
    assert stored(store) in [file.read_bytes() for file in files]
    assert unfinished(s3, bucket) == []


@pytest.mark.parametrize("size", [1, 5 << 20, 100 << 30, 5 << 40])
def test_no_object_has_more_parts_than_s3_allows(size: int) -> None:
    part_size = Limits().size_of_parts(size)
    assert 5 << 20 <= part_size <= 5 << 30
    assert -(-size // part_size) <= 10_000
