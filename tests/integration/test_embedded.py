"""The server that `make demo` and these tests run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.embedded import EmbeddedS3, embedded_s3
from cpmbee_job.store.urls import open_store

HOLDS_ONE = """
import sys, time
from pathlib import Path
from cpmbee_job.store.embedded import embedded_s3
with embedded_s3(Path(sys.argv[1]), access_key="test-key", secret_key="test-secret", buckets=["kept"]) as server:
    print(server.endpoint_url, flush=True)
    time.sleep(100)
"""


def test_objects_are_there_the_next_time(s3: EmbeddedS3, tmp_path: Path) -> None:
    for seen in ([], ["a"]):
        with embedded_s3(tmp_path, access_key=s3.access_key, secret_key=s3.secret_key, buckets=["kept"]) as server:
            store = open_store("s3://kept/x", StorageSpec(endpoint_url=server.endpoint_url))
            assert [entry.key for entry in store.list()] == seen
            store.put("a", b"content")
    assert not answers(server.endpoint_url)


def test_server_ends_with_its_killed_owner(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", HOLDS_ONE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        url = owner.stdout.readline().strip()
        assert answers(url)
    finally:
        os.kill(owner.pid, signal.SIGKILL)
        owner.communicate()
    deadline = time.monotonic() + 10
    while answers(url) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not answers(url)


def test_identities_are_for_their_owner_alone(s3: EmbeddedS3, tmp_path_factory: pytest.TempPathFactory) -> None:
    (identities,) = tmp_path_factory.getbasetemp().glob("s30/s3.json")
    assert s3.secret_key in identities.read_text()
    assert identities.stat().st_mode & 0o077 == 0


def answers(url: str) -> bool:
    try:
        urlopen(url, timeout=5).close()
    except OSError as error:
        return getattr(error, "code", None) == 403
    return True
