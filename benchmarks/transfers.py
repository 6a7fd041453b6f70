"""Measure uploads and downloads of large files against boto3's `upload_file` and `download_file`; ours verify the
content.

python -m benchmarks.transfers [--quick]
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import boto3

from benchmarks.measure import Figure, paired, settle
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.embedded import EmbeddedS3, embedded_s3
from cpmbee_job.store.s3.bucket import S3Store
from tests.integration.faults import FaultProxy, fault_proxy

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MIB = 1 << 20
BUCKET = "benchmark"


class CutError(Exception):
    """Interrupts a transfer half-way."""


def figures(quick: bool) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="cpmbee-benchmark-") as name:
        folder = Path(name)
        key, secret = "benchmark", "benchmark-secret"
        os.environ |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "CPMBEE_CACHE": str(folder / "cache")}
        with embedded_s3(folder / "server", access_key=key, secret_key=secret, buckets=[BUCKET]) as server:
            yield from _speed(folder, server, *((64 * MIB, 1, 2) if quick else (1024 * MIB, 3, 3)))
            yield from _cut(folder, server, 64 * MIB if quick else 128 * MIB)


def _speed(folder: Path, server: EmbeddedS3, size: int, uploads: int, downloads: int) -> Iterator[Figure]:
    source, copy, theirs = _random_file(folder / "source", size), folder / "copy", folder / "theirs"
    store, client = _store(server.endpoint_url), _client(server.endpoint_url)

    def before() -> None:
        for path in (copy, theirs):  # ext4 flushes a replaced file at once
            path.unlink(missing_ok=True)
        settle(size)

    def row(what: str, ours: Callable[[], object], baseline: Callable[[], object], repeats: int) -> Figure:
        seconds, their_seconds = paired(ours, baseline, repeats, before)
        return Figure(
            f"{what} of {size / 1e9:.2g} GB",
            f"{size / seconds / 1e6:.0f} MB/s, checked",
            f"{size / their_seconds / 1e6:.0f} MB/s, boto3's {what}_file",
            their_seconds / seconds,
            mark=1.0,
        )

    yield row(
        "upload",
        lambda: store.upload(source, "ours"),
        lambda: client.upload_file(str(source), BUCKET, "x/theirs"),
        uploads,
    )
    yield row(
        "download",
        lambda: store.download("ours", copy),
        lambda: client.download_file(BUCKET, "x/theirs", str(theirs)),
        downloads,
    )
    store.download("ours", copy)
    if copy.read_bytes() != source.read_bytes():
        raise AssertionError("the downloaded file differs from the uploaded one")


def _cut(folder: Path, server: EmbeddedS3, size: int) -> Iterator[Figure]:
    """Return the bytes transferred after an interruption half-way, until the file is complete."""
    source, copy = _random_file(folder / "source", size), folder / "cut"
    with fault_proxy(server.endpoint_url) as proxy:
        store, client = _store(proxy.url), _client(proxy.url)
        for what, ours, baseline in (
            (
                "upload",
                lambda progress: store.upload(source, "cut", progress),
                lambda progress: client.upload_file(str(source), BUCKET, "x/their-cut", Callback=progress),
            ),
            (
                "download",
                lambda progress: store.download("cut", copy, progress),
                lambda progress: client.download_file(BUCKET, "x/their-cut", str(copy), Callback=progress),
            ),
        ):
            moved, theirs = _bytes_after_a_cut(ours, size, proxy), _bytes_after_a_cut(baseline, size, proxy)
            yield Figure(
                f"{what} of {size / 1e9:.2g} GB, interrupted half-way: bytes moved by the next",
                f"{moved / 1e6:.0f} MB",
                f"{theirs / 1e6:.0f} MB, boto3's {what}_file",
                moved / theirs,
                mark=0.75,
                bound="at most",
            )


def _bytes_after_a_cut(transfer: Callable[[Callable[[int], None]], object], size: int, proxy: FaultProxy) -> int:
    moved = 0

    def cut(num_bytes: int) -> None:
        nonlocal moved
        moved += num_bytes
        if moved >= size // 2:
            raise CutError

    try:
        transfer(cut)
    except CutError:
        proxy.clear()
        transfer(lambda _: None)
        return proxy.uploaded + proxy.downloaded
    raise AssertionError("the transfer was not interrupted")


def _random_file(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    return path


def _store(endpoint_url: str) -> S3Store:
    return S3Store(f"s3://{BUCKET}/x", StorageSpec(endpoint_url=endpoint_url))


def _client(endpoint_url: str) -> "S3Client":
    return boto3.client("s3", endpoint_url=endpoint_url, region_name="us-east-1")


if __name__ == "__main__":
    for figure in figures("--quick" in sys.argv[1:]):
        print(f"{figure.what}: {figure.ours} | {figure.baseline} | {figure.ratio:.2f}")
