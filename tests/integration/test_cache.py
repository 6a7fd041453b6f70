"""Model folders in S3 and their cached copies."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cpmbee_job.errors import NotFoundError, StoreError
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.cache import fetch_folder
from cpmbee_job.store.s3.bucket import S3Store
from tests.integration.faults import FaultProxy


def test_folder_is_copied_once(shaky: S3Store, proxy: FaultProxy, tmp_path: Path) -> None:
    shaky.put("model/config.json", b"{}")
    shaky.put("model/weights.safetensors", b"w" * 1000)
    shaky.put("model/old/other", b"no")
    storage = StorageSpec(endpoint_url=proxy.url)
    folder = fetch_folder(f"{shaky.url}/model/", storage, tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights.safetensors"]
    assert (folder / "weights.safetensors").read_bytes() == b"w" * 1000
    assert (folder / "config.json").read_bytes() == b"{}"
    copied = proxy.gets_of("/model/")
    assert fetch_folder(f"{shaky.url}/model", storage, tmp_path / "cache") == folder
    assert proxy.gets_of("/model/") == copied


def test_a_changed_folder_is_cached_separately(shaky: S3Store, s3_storage: StorageSpec, tmp_path: Path) -> None:
    shaky.put("model/config.json", b"1")
    first = fetch_folder(f"{shaky.url}/model", s3_storage, tmp_path)
    shaky.put("model/config.json", b"2")
    second = fetch_folder(f"{shaky.url}/model", s3_storage, tmp_path)
    assert (first / "config.json").read_bytes() == b"1"
    assert (second / "config.json").read_bytes() == b"2"


def test_interrupted_copy_is_completed(shaky: S3Store, proxy: FaultProxy, tmp_path: Path) -> None:
    shaky.put("model/a", b"a")
    shaky.put("model/b", b"b" * 100)
    storage = StorageSpec(endpoint_url=proxy.url)
    proxy.fail("error", 100, key="/model/b")
    with pytest.raises(StoreError):
        fetch_folder(f"{shaky.url}/model", storage, tmp_path)
    proxy.clear()
    copied = proxy.gets_of("/model/a")
    folder = fetch_folder(f"{shaky.url}/model", storage, tmp_path)
    assert proxy.gets_of("/model/a") == copied
    assert (folder / "b").read_bytes() == b"b" * 100


def test_many_processes_fetch_one_folder(shaky: S3Store, proxy: FaultProxy, tmp_path: Path) -> None:
    shaky.put("model/config.json", json.dumps(list(range(1000))).encode())
    url, storage = f"{shaky.url}/model", StorageSpec(endpoint_url=proxy.url)
    with ThreadPoolExecutor(4) as pool:
        copies = [pool.submit(fetch_folder, url, storage, tmp_path) for _ in range(4)]
        assert len({copy.result() for copy in copies}) == 1
    assert proxy.gets_of("/model/config.json") < 4  # one copy, possibly retried


def test_a_missing_folder_is_reported(s3_storage: StorageSpec, bucket: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        fetch_folder(f"{bucket}/nothing", s3_storage, tmp_path)
