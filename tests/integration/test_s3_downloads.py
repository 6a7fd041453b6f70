"""Large files from S3, interrupted: the next call transfers only the missing parts and never mixes contents."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from cpmbee_job.errors import DamagedError, StoreError
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.embedded import EmbeddedS3, embedded_s3
from cpmbee_job.store.s3.bucket import S3Store
from tests.integration.conftest import BUCKET, CREDENTIALS, QUICK, TAIL
from tests.integration.faults import FaultProxy, fault_proxy
from tests.integration.transfers import HEADERS, LONG_TIMEOUT, PART, alter, kill_when, sha256, stored

pytestmark = pytest.mark.usefixtures("cache")


def test_a_killed_download_resumes(shaky: S3Store, proxy: FaultProxy, big: Path, tmp_path: Path) -> None:
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


def test_a_failed_download_resumes(steady: S3Store, proxy: FaultProxy, big: Path, tmp_path: Path) -> None:
    steady.upload(big, "big")
    proxy.fail("error", 100, key=f"bytes={2 * PART}-")
    with pytest.raises(StoreError, match="big"):
        steady.download("big", tmp_path / "copy")
    proxy.clear()
    steady.download("big", tmp_path / "copy")
    assert proxy.downloaded == PART + TAIL
    assert sha256(tmp_path / "copy") == sha256(big)


def test_only_the_rest_of_a_truncated_range_is_downloaded(
    steady: S3Store, proxy: FaultProxy, big: Path, tmp_path: Path
) -> None:
    steady.upload(big, "big")
    proxy.clear()
    proxy.fail("truncate", 1, key=f"bytes={PART}-")
    steady.download("big", tmp_path / "copy")
    assert proxy.hits == 1
    assert proxy.downloaded == big.stat().st_size
    assert sha256(tmp_path / "copy") == sha256(big)


def test_a_changed_object_restarts_the_download(steady: S3Store, proxy: FaultProxy, big: Path, tmp_path: Path) -> None:
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


def test_altered_bytes_of_an_incomplete_download_are_replaced(
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
    with pytest.raises(DamagedError, match="checksum is wrong"):
        steady.download("big", tmp_path / "copy")


def test_a_corrupt_object_is_reported(
    steady: S3Store, proxy: FaultProxy, s3: EmbeddedS3, bucket: str, big: Path, tmp_path: Path
) -> None:
    client = boto3.client("s3", endpoint_url=s3.endpoint_url, region_name="us-east-1")
    key = f"{bucket.rpartition('/')[2]}/big"
    client.upload_file(str(big), BUCKET, key, ExtraArgs={"Metadata": {"sha256": hashlib.sha256(b"other").hexdigest()}})
    with pytest.raises(DamagedError, match="checksum is wrong"):
        steady.download("big", tmp_path / "out" / "copy")
    assert list((tmp_path / "out").iterdir()) == []


def test_several_download_to_the_same_place(bucket: str, s3_storage: StorageSpec, big: Path, tmp_path: Path) -> None:
    store = S3Store(bucket, s3_storage, LONG_TIMEOUT)
    store.upload(big, "big")
    copy = tmp_path / "out" / "copy"
    with ThreadPoolExecutor(3) as pool:
        for call in [pool.submit(store.download, "big", copy) for _ in range(3)]:
            call.result()
    assert sha256(copy) == sha256(big)
    assert list(copy.parent.iterdir()) == [copy]


def test_transfers_resume_after_a_restart_of_the_server(tmp_path: Path, s3: EmbeddedS3, big: Path) -> None:
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


def whole_ranges(copy: Path) -> int:
    """How many ranges the hidden file of an unfinished download has."""
    found = list(copy.parent.glob(".copy.*")) if copy.parent.is_dir() else []
    return sum(found[0].read_bytes()[3 * PART + TAIL :][:4]) if found else 0
