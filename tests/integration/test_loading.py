"""Models read by ranges: from S3, by several ranks, with little memory, and with faults."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cpmbee_job.errors import ModelError, StoreError
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.locate import fetch_model
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.weights.model_folder import find_model, load_model
from cpmbee_job.model.weights.saving import save_pickled, save_weights
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.s3.bucket import S3Store
from tests.deltas import stored_digest
from tests.integration.faults import FaultProxy
from tests.ports import free_port

CPU = torch.device("cpu")
CONFIG = ModelConfig(vocab_size=6000, dim_model=256, num_heads=4, dim_head=64, dim_ff=640, num_layers=4)


def make_model(folder: Path, *, as_bin: bool = False, dtype: torch.dtype = torch.float32, config=CONFIG) -> Path:
    """About 20 MB of random weights, so that there are some twenty pieces."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    (folder / "vocab.txt").write_text("<pad>\n", encoding="utf-8")
    model = CpmBee(config)
    generator = torch.Generator().manual_seed(1)
    state = {
        n: torch.empty(p.shape).uniform_(-1, 1, generator=generator).to(dtype) for n, p in model.named_parameters()
    }
    if as_bin:
        save_pickled(state, folder / "pytorch_model.bin")
    else:
        save_weights(state, folder, shard_bytes=8 << 20)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CPMBEE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def stored(folder, shaky, s3_storage, bucket) -> str:
    """The model's URL in S3."""
    store = S3Store(bucket, s3_storage)
    for path in folder.iterdir():
        store.upload(path, path.name)
    return bucket


def load(url: str, endpoint_url: str):
    return load_model(fetch_model(url, StorageSpec(endpoint_url=endpoint_url)), torch.float32, CPU)


def world(size: int, *arguments: str, caches: list[Path] | None = None) -> list[dict]:
    """Load the model in a world and return the output of each rank."""
    port = free_port()
    ranks = []
    for rank in range(size):
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        env |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if caches is not None:
            env["CPMBEE_CACHE"] = str(caches[rank])
        command = [sys.executable, "-m", "tests.integration.load_together", *arguments]
        ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    answers = [rank.communicate(timeout=120) for rank in ranks]
    assert all(out for out, _ in answers), [err for _, err in answers]
    return [json.loads(out) for out, _ in answers]


def test_a_model_in_s3_equals_the_one_on_disk(folder, stored, s3_storage):
    here, there = load_model(find_model(folder), torch.float32, CPU), load(stored, s3_storage.endpoint_url)
    assert there.base_digest == here.base_digest == stored_digest(find_model(folder))
    for (name, ours), (_, theirs) in zip(here.named_parameters(), there.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_the_original_file_is_read_by_ranges_too(folder, bucket, s3_storage, proxy, tmp_path):
    path = make_model(tmp_path / "bin", as_bin=True)
    store = S3Store(bucket, s3_storage)
    for file in path.iterdir():
        store.upload(file, file.name)
    assert load(bucket, s3_storage.endpoint_url).base_digest == stored_digest(find_model(folder))


def test_a_second_process_does_not_read_the_store_again(stored, proxy: FaultProxy):
    first = load(stored, proxy.url).base_digest
    shards = f"{stored.removeprefix('s3:/')}/model-0"
    before = proxy.gets_of(shards)
    assert load(stored, proxy.url).base_digest == first
    tables = 2 * 3  # length and header of each shard
    assert 0 < proxy.gets_of(shards) - before <= tables


def test_a_corrupt_cached_range_is_read_again(stored, proxy, cache):
    first = load(stored, proxy.url).base_digest
    largest = max((cache / "ranges").rglob("*-*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[1000] ^= 1
    largest.write_bytes(data)
    assert load(stored, proxy.url).base_digest == first


@pytest.mark.parametrize("kind", ["truncate", "drop", "error"])
def test_failed_ranges_are_retried(stored, proxy, s3_storage, kind):
    proxy.fail(kind, 3, key="model-0")
    assert load(stored, proxy.url).base_digest == load(stored, s3_storage.endpoint_url).base_digest
    assert proxy.hits == 3


def test_ranges_that_always_fail_raise_an_error(stored, shaky, proxy):
    proxy.fail("truncate", 1000, key="model-00002")
    found = shaky.info("model-00002-of-00003.safetensors")
    with pytest.raises(StoreError, match=r"model-00002.*arrived truncated"):
        shaky.read_into(found.key, 0, [memoryview(bytearray(1000))], found.etag)


def test_an_object_that_changes_during_the_read_is_reported(stored, folder, s3_storage):
    files = fetch_model(stored, s3_storage)
    S3Store(stored, s3_storage).put(Path(files.weights[1].name).name, b"another")
    with pytest.raises(StoreError, match=r"model-00002.*changed while it was read"):
        load_model(files, torch.float32, CPU)


def test_each_rank_reads_its_share_once(folder):
    alone = load_model(find_model(folder), torch.float32, CPU)
    reports = world(2, str(folder))
    assert [report["digest"] for report in reports] == [alone.base_digest] * 2
    expected = sum(parameter.double().sum().item() for parameter in alone.parameters())
    assert [report["sum"] for report in reports] == pytest.approx([expected] * 2, rel=1e-12)
    total = sum(parameter.nbytes for parameter in alone.parameters())
    shares = [report["bytes"] for report in reports]
    assert total <= sum(shares) <= total + 1000  # except for the tables
    assert max(shares) < 0.55 * total


def test_ranks_that_keep_shares_read_as_little_and_have_the_whole_together(folder, tmp_path):
    alone = load_model(find_model(folder), torch.float32, CPU)
    reports = world(3, str(folder), "", "", str(tmp_path / "kept"))
    assert [report["digest"] for report in reports] == [alone.base_digest] * 3
    total = sum(parameter.nbytes for parameter in alone.parameters())
    assert max(report["bytes"] for report in reports) < 0.4 * total
    kept = [torch.load(tmp_path / f"kept.{rank}") for rank in range(3)]
    for name, parameter in alone.named_parameters():
        if name.startswith("encoder.layers"):
            assert torch.equal(torch.cat([shares[name] for shares in kept]), parameter.flatten()), name
            assert max(shares[name].numel() for shares in kept) <= parameter.numel() // 3 + 1
        else:
            assert all(torch.equal(shares[name], parameter.flatten()) for shares in kept), name


def test_a_rank_reads_what_its_machine_has_kept(stored, s3_storage, proxy, tmp_path):
    caches = [tmp_path / "one", tmp_path / "other"]
    first = world(2, stored, proxy.url, caches=caches)
    before = proxy.gets_of("/model-0")
    second = world(2, stored, proxy.url, caches=caches[::-1])  # the pods restart with swapped indices
    assert [report["digest"] for report in second] == [report["digest"] for report in first]
    assert proxy.gets_of("/model-0") - before <= 2 * 2 * 3  # tables


def test_a_rank_that_cannot_read_fails_all_ranks_with_its_error(folder):
    reports = world(3, str(folder), "", "1")
    assert [report["error"] for report in reports] == [reports[1]["error"]] * 3
    assert "planned by a test" in reports[1]["error"]


def test_non_finite_weights_fail_all_ranks(folder, tmp_path):
    bad = make_model(tmp_path / "bad")
    path = sorted(bad.glob("*.safetensors"))[-1]
    data = bytearray(path.read_bytes())
    data[-4:] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    errors = [report["error"] for report in world(2, str(bad))]
    assert errors[0] == errors[1]
    assert "ModelError" in errors[0]
    assert "NaN or infinite" in errors[0]
    with pytest.raises(ModelError, match="NaN or infinite"):
        load_model(find_model(bad), torch.float32, CPU)


@pytest.mark.parametrize(
    ("what", "as_bin", "dtype", "limit"),
    [
        ("load", False, torch.float32, 1.15),
        ("load", True, torch.float32, 1.15),
        ("load", True, torch.float16, 1.15),
        ("convert", True, torch.float32, 0.5),
    ],
)
def test_memory_stays_near_the_model_s_size(tmp_path, what, as_bin, dtype, limit):
    config = replace(CONFIG, vocab_size=20_000, dim_model=768, dim_ff=2048, num_layers=12)
    folder = make_model(tmp_path / "model", as_bin=as_bin, dtype=dtype, config=config)
    arguments = [folder] if what == "load" else [folder, tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loading", what, *map(str, arguments)],
        env={**os.environ, "CPMBEE_BENCHMARK_ENDPOINT": "http://127.0.0.1:1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    with torch.device("meta"):
        size = sum(4 * parameter.numel() for parameter in CpmBee(config).parameters())
    assert json.loads(done.stdout)["memory"] < limit * size
