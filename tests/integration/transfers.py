"""Helpers for the tests of uploads and downloads."""

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cpmbee_job.store.s3.bucket import S3Store
from tests.integration.conftest import QUICK

LONG_TIMEOUT = replace(QUICK, read_timeout=60)
"""Limits for many concurrent clients of one server."""
PART = QUICK.part_size
HEADERS = 20_000
"""Upper bound of the bytes of headers and XML in a transfer."""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kill_when(reached: Callable[[], bool], call: str, store: S3Store, endpoint_url: str) -> None:
    """Run a call of the store in a subprocess, and kill it as soon as it reaches that point."""
    code = (
        "from pathlib import Path\nfrom cpmbee_job.spec import StorageSpec\n"
        "from cpmbee_job.store.s3.bucket import S3Store\n"
        "from cpmbee_job.store.s3.client import Limits\n"
        f"store = S3Store({store.url!r}, StorageSpec(endpoint_url={endpoint_url!r}), "
        f"Limits(part_size={PART}, threads=4))\nstore.{call}\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while not reached():
            assert process.poll() is None, "it exited before it was killed"
            assert time.monotonic() < deadline, "it did not get there"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def stored(store: S3Store) -> bytes:
    return store.get("big")


def alter(path: Path, place: int) -> None:
    """Change one byte."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
