"""A real S3 server for the tests that need one."""

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cpmbee_job.spec import JobSpec, StorageSpec, parse_spec
from cpmbee_job.store.embedded import EmbeddedS3, embedded_s3
from cpmbee_job.store.s3.bucket import S3Store
from cpmbee_job.store.s3.client import Limits
from tests.fake_cluster import FakeCluster
from tests.integration.faults import FaultProxy, fault_proxy
from tests.integration.submitting import make_inputs
from tests.integration.worlds import RankServer, rank_server

BUCKET = "tests"
MIB = 1 << 20
QUICK = Limits(attempts=3, connect_timeout=1, read_timeout=1, part_size=5 * MIB, threads=4)
TAIL = 12345
"""Bytes of the last part of `big`."""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret"}


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedS3]:
    """The server, and in the environment the credentials for it and nothing else of AWS."""
    before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    for name in before:
        del os.environ[name]
    os.environ.update(CREDENTIALS)
    try:
        key, secret = CREDENTIALS.values()
        with embedded_s3(tmp_path_factory.mktemp("s3"), access_key=key, secret_key=secret, buckets=[BUCKET]) as server:
            yield server
    finally:
        for name in CREDENTIALS:
            os.environ.pop(name, None)
        os.environ.update(before)


@pytest.fixture
def bucket(s3: EmbeddedS3) -> str:
    """URL of a folder in S3 that only this test uses."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def s3_storage(s3: EmbeddedS3) -> StorageSpec:
    """How to reach `bucket`."""
    return StorageSpec(endpoint_url=s3.endpoint_url)


@pytest.fixture(scope="session")
def session_proxy(s3: EmbeddedS3) -> Iterator[FaultProxy]:
    with fault_proxy(s3.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def proxy(session_proxy: FaultProxy) -> FaultProxy:
    session_proxy.clear()
    return session_proxy


@pytest.fixture
def shaky(proxy: FaultProxy, bucket: str) -> S3Store:
    """A store that reaches the server through the proxy."""
    return S3Store(bucket, StorageSpec(endpoint_url=proxy.url), QUICK)


@pytest.fixture
def steady(proxy: FaultProxy, bucket: str) -> S3Store:
    """A store that transfers one part after the other, through the proxy."""
    return S3Store(bucket, StorageSpec(endpoint_url=proxy.url), replace(QUICK, threads=1))


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of four parts."""
    path = tmp_path / "big.bin"
    path.write_bytes(os.urandom(3 * QUICK.part_size + TAIL))
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CPMBEE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankServer]:
    """Starts ranks without waiting for their imports."""
    with rank_server(tmp_path_factory.mktemp("ranks") / "log") as server:
        yield server


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster("team")


@pytest.fixture
def job(tmp_path: Path, bucket: str, s3_storage: StorageSpec) -> Callable[..., JobSpec]:
    """A spec whose inputs lie on this machine, with overrides."""
    make_inputs(tmp_path)
    text = (
        f"name: weather\nmodel: model/\ndata: {{train: train.jsonl, eval: eval/}}\noutput: {bucket}/runs/\n"
        f"image: example/train:1\nstorage: {{endpoint_url: {s3_storage.endpoint_url}, secret: s3}}\n"
    )
    return lambda *overrides: parse_spec(text, source="job.yaml", overrides=overrides, base=tmp_path)
