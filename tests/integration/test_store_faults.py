"""Training and storing through faults of the store: errors, outages, slow responses, wrong clocks, full disks."""

import json
import os
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpmbee_job.errors import AccessError, DiskError
from cpmbee_job.run import keys
from cpmbee_job.run.checkpoints import read_state, stored_checkpoints
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.s3.bucket import S3Store
from cpmbee_job.store.urls import open_store
from tests.integration.conftest import QUICK
from tests.integration.disk import small_disk
from tests.integration.faults import METHODS, FaultProxy
from tests.integration.jobs import cli, losses, make_job, metrics, start

STALL_TIMEOUT = 20
OUTAGE = 2.0 * STALL_TIMEOUT
"""Seconds."""


def test_training_continues_through_bursts_of_errors_and_an_outage_longer_than_the_stall_timeout(
    bucket: str, proxy: FaultProxy, s3_storage: StorageSpec, tmp_path: Path
) -> None:
    """Steps continue during the outage. Afterwards the outputs are stored, with an undisturbed run's loss curve."""
    job = make_job(tmp_path)
    target = ["--set", f"output={bucket}", "--set", f"storage.endpoint_url={proxy.url}"]
    target += ["--set", f"train.stall_timeout={STALL_TIMEOUT}"]  # waiting for the store does not count as a stall
    process = start("local", job, "--run-id", "shaken", "--processes", 2, "--set", "train.epochs=4", *target)
    store = open_store(f"{bucket}/weather/shaken", s3_storage)
    while store.info(keys.manifest_key(2, 1)) is None:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    for kind in ("error", "slow_down", "truncate", "hang", "drop_answer"):
        proxy.fail(kind, 4, method="PUT" if kind in ("error", "drop_answer") else "GET")
    time.sleep(1)
    away_at = time.monotonic()
    proxy.be_away()
    calm = cli("local", job, "--run-id", "calm", "--set", "train.epochs=4")
    assert calm.code == 0, calm.err
    time.sleep(max(0.0, away_at + OUTAGE - time.monotonic()))
    assert process.poll() is None
    assert store.info(keys.RESULT) is None
    proxy.clear()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "the store failed, retrying" in err
    record = json.loads(store.get(keys.RESULT))
    assert (record["state"], record["attempts"]) == ("succeeded", 1)
    assert losses(store.url, s3_storage) == pytest.approx(losses(tmp_path / "runs/weather/calm"), rel=1e-4)
    for manifest in stored_checkpoints(store):
        read_state(store, manifest)


def test_a_slow_response_body_is_read_to_the_end(shaky: S3Store, proxy: FaultProxy) -> None:
    shaky.put("a", bytes(range(256)) * 1000)
    proxy.fail("trickle", 1)  # three times as long in all as the store waits for a single byte
    assert shaky.get("a") == bytes(range(256)) * 1000
    assert proxy.hits == 1


def test_a_server_with_a_wrong_clock_is_tolerated(shaky: S3Store, proxy: FaultProxy) -> None:
    for method in METHODS:
        proxy.fail("skew", 1 << 30, method=method)
    etag = shaky.put("a", b"1", if_none_match=True)
    assert shaky.get_with_etag("a") == (b"1", etag)
    shaky.put("a", b"2", if_match=etag)
    assert [entry.key for entry in shaky.list()] == ["a"]
    assert proxy.hits > 3


def test_a_wrong_local_clock_is_reported(bucket: str, proxy: FaultProxy, tmp_path: Path) -> None:
    program = f"""
        import botocore.auth, datetime
        now = botocore.auth.get_current_datetime
        botocore.auth.get_current_datetime = lambda *a, **o: now(*a, **o) + datetime.timedelta(days=1)
        from cpmbee_job.spec import StorageSpec
        from cpmbee_job.store.s3.bucket import S3Store
        S3Store("{bucket}", StorageSpec(endpoint_url="{proxy.url}")).put("a", b"1")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert AccessError.__name__ in done.stderr
    assert "the clock of this machine is wrong" in done.stderr


@pytest.fixture
def short_lived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configure a program that issues credentials valid for two seconds. Return the file that counts its calls."""
    calls = tmp_path / "calls"
    program = tmp_path / "credentials"
    answer = {"Version": 1, "AccessKeyId": os.environ["AWS_ACCESS_KEY_ID"]}
    answer["SecretAccessKey"] = os.environ["AWS_SECRET_ACCESS_KEY"]
    program.write_text(
        f"#!{sys.executable}\nimport datetime, json\nopen({str(calls)!r}, 'a').write('.')\n"
        f"until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=2)\n"
        f"print(json.dumps({answer!r} | {{'Expiration': until.isoformat()}}))\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    return calls


def test_expired_credentials_are_refreshed(s3, bucket: str, s3_storage: StorageSpec, short_lived: Path):
    store = S3Store(bucket, s3_storage, QUICK)
    store.put("a", b"1")
    before = len(short_lived.read_text())
    time.sleep(2.1)
    assert store.get("a") == b"1"
    assert len(short_lived.read_text()) > before


@pytest.fixture
def one_megabyte(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 1 MB, or skip the test."""
    with small_disk(tmp_path / "small", "1m") as is_there:
        if not is_there:
            pytest.skip("no file system can be mounted here")
        yield tmp_path / "small"


def test_a_full_disk_fails_the_command_with_a_message_and_the_run_resumes_after_space_is_freed(
    one_megabyte: Path, tmp_path: Path
) -> None:
    job = make_job(tmp_path)
    filler = one_megabyte / "filler"
    filler.write_bytes(bytes(600_000))
    options = ["--run-id", "full", "--set", f"output={one_megabyte}/runs", "--set", "train.checkpoint_interval=1"]
    options += ["--set", "train.keep_checkpoints=100"]
    done = cli("local", job, *options)
    assert done.code == DiskError.exit_code, done.err
    assert "No space left on device" in done.err
    assert f"free space on the disk of {one_megabyte}" in done.err
    assert "Traceback" not in done.err
    run = one_megabyte / "runs" / "weather" / "full"
    store = open_store(str(run))
    for manifest in stored_checkpoints(store):
        read_state(store, manifest)  # every listed checkpoint is complete
    filler.unlink()
    again = cli("local", job, *options, "--set", "train.keep_checkpoints=2")
    assert again.code == 0, again.err
    assert len(losses(run)) == 12
    assert len({line["attempt"] for line in metrics(run)}) == 2
