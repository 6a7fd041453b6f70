"""Large files to S3 and back, cut off in the middle: the next call moves what is missing, and nothing is mixed up."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import boto3
import pytest

from cpmbee_job.errors import DamagedError, StoreError
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.embedded import EmbeddedS3, embedded_s3
from cpmbee_job.store.s3 import S3Store
from cpmbee_job.store.s3_client import Limits
from tests.integration.conftest import BUCKET, CREDENTIALS, QUICK
from tests.integration.faults import FaultProxy, fault_proxy

PATIENT = replace(QUICK, read_timeout=60)
"""Of those that crowd on one server."""
PART = QUICK.part_size
TAIL = 12345
HEADERS = 20_000
"""More bytes than all XML of a transfer has."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CPMBEE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of four parts."""
    path = tmp_path / "big.bin"
    path.write_bytes(os.urandom(3 * PART + TAIL))
    return path


@pytest.fixture
def steady(proxy: FaultProxy, bucket: str) -> S3Store:
    """A store that moves one part after the other, by way of the proxy."""
    return S3Store(bucket, StorageSpec(endpoint_url=proxy.url), replace(QUICK, threads=1))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


def kill_when(reached: Callable[[], bool], call: str, store: S3Store, endpoint_url: str) -> None:
    """Runs a call of the store in a process of its own, which is killed as soon as that point is reached."""
    code = (
        "from pathlib import Path\nfrom cpmbee_job.spec import StorageSpec\nfrom cpmbee_job.store.s3 import S3Store\n"
        "from cpmbee_job.store.s3_client import Limits\n"
        f"store = S3Store({store.url!r}, StorageSpec(endpoint_url={endpoint_url!r}), "
        f"Limits(part_size={PART}, threads=4))\nstore.{call}\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while not reached():
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline, "it did not get there"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


# --- upload ----------------------------------------------------------------------------------------------------------


def test_killed_upload_is_gone_on_with(
    shaky: S3Store, proxy: FaultProxy, big: Path, s3: EmbeddedS3, bucket: str
) -> None:
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


def test_failed_upload_is_gone_on_with(steady: S3Store, proxy: FaultProxy, big: Path) -> None:
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
def test_of_another_content_the_parts_that_differ_are_sent(
    steady: S3Store, proxy: FaultProxy, big: Path, s3: EmbeddedS3, bucket: str, place: int
) -> None:
    proxy.fail("error", 100, method="PUT", key="partNumber=4")
    with pytest.raises(StoreError):
        steady.upload(big, "big")
    alter(big, place)
    proxy.clear()
    steady.upload(big, "big")
    assert proxy.uploaded < TAIL + HEADERS + (0 if place == 3 * PART else PART)
    assert stored(steady) == big.read_bytes()
    assert unfinished(s3, bucket) == []


def test_content_whose_digest_is_known_is_never_mixed_with_another(
    steady: S3Store, proxy: FaultProxy, big: Path, s3: EmbeddedS3, bucket: str
) -> None:
    proxy.fail("error", 100, method="PUT", key="partNumber=4")
    with pytest.raises(StoreError):
        steady.upload(big, "big", sha256=sha256(big))
    alter(big, 3 * PART)
    proxy.clear()
    steady.upload(big, "big", sha256=sha256(big))
    assert proxy.uploaded > 3 * PART
    assert stored(steady) == big.read_bytes()
    assert steady.info("big").sha256 == sha256(big)
    assert unfinished(s3, bucket) == []


def test_known_digest_goes_on_after_a_cut(steady: S3Store, proxy: FaultProxy, big: Path) -> None:
    proxy.fail("error", 100, method="PUT", key="partNumber=4")
    with pytest.raises(StoreError):
        steady.upload(big, "big", sha256=sha256(big))
    proxy.clear()
    steady.upload(big, "big", sha256=sha256(big))
    assert proxy.uploaded < TAIL + HEADERS
    assert steady.info("big").sha256 == sha256(big)


def test_small_file_ends_an_older_upload(
    steady: S3Store, proxy: FaultProxy, big: Path, s3: EmbeddedS3, bucket: str, cache: Path
) -> None:
    proxy.fail("error", 100, method="PUT", key="partNumber=4")
    with pytest.raises(StoreError):
        steady.upload(big, "big")
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
    proxy.fail("error", 100, method="PUT", key="partNumber=4")
    with pytest.raises(StoreError):
        steady.upload(big, "big")
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


def test_garbled_record_begins_anew(steady: S3Store, proxy: FaultProxy, big: Path, cache: Path) -> None:
    proxy.fail("error", 100, method="PUT", key="partNumber=4")
    with pytest.raises(StoreError):
        steady.upload(big, "big")
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


def test_that_server_s_uploads_are_gone_on_with_too(steady: S3Store, proxy: FaultProxy, big: Path) -> None:
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
        for call in [pool.submit(S3Store(bucket, storage, PATIENT).upload, big, "big") for _ in range(3)]:
            call.result()
    store = S3Store(bucket, storage, PATIENT)
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
        for call in [pool.submit(S3Store(bucket, s3_storage, PATIENT).upload, file, "big") for file in files]:
            call.result()
    store = S3Store(bucket, s3_storage, PATIENT)
    assert stored(store) in [file.read_bytes() for file in files]
    assert unfinished(s3, bucket) == []


# --- download --------------------------------------------------------------------------------------------------------


def test_killed_download_is_gone_on_with(shaky: S3Store, proxy: FaultProxy, big: Path, tmp_path: Path) -> None:
    shaky.upload(big, "big")
    proxy.clear()
    proxy.fail("hang", 1000, key=f"bytes={PART}-")
    copy = tmp_path / "out" / "copy"
    kill_when(
        lambda: proxy.hits > 0 and whole_ranges(copy) == 3, f"download('big', Path({str(copy)!r}))", shaky, proxy.url
    )
    assert not copy.exists()
    proxy.clear()
    moved: list[int] = []
    shaky.download("big", copy, moved.append)
    assert proxy.downloaded == PART
    assert sum(moved) == big.stat().st_size
    assert sha256(copy) == sha256(big)
    assert list(copy.parent.iterdir()) == [copy]


def test_failed_download_is_gone_on_with(steady: S3Store, proxy: FaultProxy, big: Path, tmp_path: Path) -> None:
    steady.upload(big, "big")
    proxy.fail("error", 100, key=f"bytes={2 * PART}-")
    with pytest.raises(StoreError, match="big"):
        steady.download("big", tmp_path / "copy")
    proxy.clear()
    steady.download("big", tmp_path / "copy")
    assert proxy.downloaded == PART + TAIL
    assert sha256(tmp_path / "copy") == sha256(big)


def test_rest_of_a_truncated_range_alone_is_moved(
    steady: S3Store, proxy: FaultProxy, big: Path, tmp_path: Path
) -> None:
    steady.upload(big, "big")
    proxy.clear()
    proxy.fail("truncate", 1, key=f"bytes={PART}-")
    steady.download("big", tmp_path / "copy")
    assert proxy.hits == 1
    assert proxy.downloaded == big.stat().st_size
    assert sha256(tmp_path / "copy") == sha256(big)


def test_another_object_begins_anew(steady: S3Store, proxy: FaultProxy, big: Path, tmp_path: Path) -> None:
    steady.upload(big, "big")
    proxy.fail("error", 100, key=f"bytes={3 * PART}-")
    with pytest.raises(StoreError):
        steady.download("big", tmp_path / "copy")
    proxy.clear()
    with big.open("r+b") as file:
        file.write(b"another beginning")
    steady.upload(big, "big")
    proxy.clear()
    steady.download("big", tmp_path / "copy")
    assert proxy.downloaded == big.stat().st_size
    assert sha256(tmp_path / "copy") == sha256(big)


def test_object_that_is_replaced_meanwhile(steady: S3Store, big: Path, tmp_path: Path) -> None:
    steady.upload(big, "big")
    newer = tmp_path / "newer"
    newer.write_bytes(os.urandom(3 * PART + TAIL))

    class Once:
        done = False

        def __call__(self, _: int) -> None:
            if not self.done:
                self.done = True
                steady.upload(newer, "big")

    steady.download("big", tmp_path / "copy", Once())
    assert sha256(tmp_path / "copy") == sha256(newer)


def test_kept_bytes_that_were_altered_on_the_disk(
    steady: S3Store, proxy: FaultProxy, big: Path, tmp_path: Path
) -> None:
    steady.upload(big, "big")
    proxy.fail("error", 100, key=f"bytes={3 * PART}-")
    copy = tmp_path / "out" / "copy"
    with pytest.raises(StoreError):
        steady.download("big", copy)
    proxy.clear()
    (kept,) = copy.parent.iterdir()
    alter(kept, PART + 7)
    steady.download("big", copy)
    assert sha256(copy) == sha256(big)


def test_object_with_a_digest_is_checked_by_it(steady: S3Store, proxy: FaultProxy, big: Path, tmp_path: Path) -> None:
    steady.upload(big, "big", sha256=hashlib.sha256(b"what the submitter has seen").hexdigest())
    with pytest.raises(DamagedError, match="checksum is not the one"):
        steady.download("big", tmp_path / "copy")


def test_damaged_object_is_told(
    steady: S3Store, proxy: FaultProxy, s3: EmbeddedS3, bucket: str, big: Path, tmp_path: Path
) -> None:
    client = boto3.client("s3", endpoint_url=s3.endpoint_url, region_name="us-east-1")
    key = f"{bucket.rpartition('/')[2]}/big"
    client.upload_file(str(big), BUCKET, key, ExtraArgs={"Metadata": {"sha256": hashlib.sha256(b"other").hexdigest()}})
    with pytest.raises(DamagedError, match="checksum is not the one"):
        steady.download("big", tmp_path / "out" / "copy")
    assert list((tmp_path / "out").iterdir()) == []


def test_several_download_to_the_same_place(bucket: str, s3_storage: StorageSpec, big: Path, tmp_path: Path) -> None:
    store = S3Store(bucket, s3_storage, PATIENT)
    store.upload(big, "big")
    copy = tmp_path / "out" / "copy"
    with ThreadPoolExecutor(3) as pool:
        for call in [pool.submit(store.download, "big", copy) for _ in range(3)]:
            call.result()
    assert sha256(copy) == sha256(big)
    assert list(copy.parent.iterdir()) == [copy]


def test_server_that_is_started_again(tmp_path: Path, s3: EmbeddedS3, big: Path) -> None:
    key, secret = CREDENTIALS.values()
    limits = replace(QUICK, threads=1)

    def open_store(proxy: FaultProxy) -> S3Store:
        return S3Store(f"s3://{BUCKET}/x", StorageSpec(endpoint_url=proxy.url), limits)

    def server():
        return embedded_s3(tmp_path / "server", access_key=key, secret_key=secret, buckets=[BUCKET])

    with server() as first, fault_proxy(first.endpoint_url) as proxy:
        proxy.fail("error", 100, method="PUT", key="partNumber=3")
        with pytest.raises(StoreError):
            open_store(proxy).upload(big, "big")
        proxy.clear()
        open_store(proxy).upload(big, "other")
        proxy.fail("error", 100, key=f"bytes={2 * PART}-")
        with pytest.raises(StoreError):
            open_store(proxy).download("other", tmp_path / "copy")
    with server() as second, fault_proxy(second.endpoint_url) as proxy:
        open_store(proxy).upload(big, "big")
        assert proxy.uploaded < PART + TAIL + HEADERS
        open_store(proxy).download("other", tmp_path / "copy")
        assert proxy.downloaded < PART + TAIL + HEADERS
        assert stored(open_store(proxy)) == (tmp_path / "copy").read_bytes() == big.read_bytes()


# --- how objects are cut ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5 << 20, 100 << 30, 5 << 40])
def test_no_object_has_more_parts_than_s3_allows(size: int) -> None:
    part_size = Limits().size_of_parts(size)
    assert 5 << 20 <= part_size <= 5 << 30
    assert -(-size // part_size) <= 10_000


def alter(path: Path, place: int) -> None:
    """Changes a byte."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def stored(store: S3Store) -> bytes:
    return store.get("big")


def whole_ranges(copy: Path) -> int:
    """How many ranges the hidden file of an unfinished download has."""
    found = list(copy.parent.glob(".copy.*")) if copy.parent.is_dir() else []
    return sum(found[0].read_bytes()[3 * PART + TAIL :][:4]) if found else 0
