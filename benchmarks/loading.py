"""Measure loading a model: its memory, its speed from S3, and the share that each of two ranks reads.

`python -m benchmarks.loading [quick]` prints the figures. Memory is measured in a fresh process, which runs this file.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import torch

from benchmarks.measure import Figure, paired, rendezvous, settle
from cpmbee_job.cli.results.model import convert
from cpmbee_job.cli.shared.options import StoreOptions
from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.locate import fetch_model
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.weights.model_folder import ModelFiles, load_model
from cpmbee_job.model.weights.pieces import READERS, WeightPiece
from cpmbee_job.model.weights.saving import save_pickled, save_weights
from cpmbee_job.model.weights.stored import StoredWeights
from cpmbee_job.model.weights.weight_file import WeightFile
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import ObjectInfo
from cpmbee_job.store.embedded import embedded_s3
from cpmbee_job.store.s3.bucket import S3Store
from cpmbee_job.train.world import World

CPU = torch.device("cpu")
KEY, SECRET = "benchmark", "benchmark-secret"
ENDPOINT = "CPMBEE_BENCHMARK_ENDPOINT"
LARGEST_TABLE = 1 << 16
"""Shorter reads are those of the files' headers, which every rank reads."""


def figures(quick: bool) -> Iterator[Figure]:
    """Use about 2 GB of weights in fp32, or 300 MB."""
    num_layers = 5 if quick else 42
    with tempfile.TemporaryDirectory(prefix="cpmbee-bench-") as name, ExitStack() as stack:
        root = Path(name)
        os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "CPMBEE_CACHE": str(root / "cache")}
        server = stack.enter_context(embedded_s3(root / "s3", access_key=KEY, secret_key=SECRET, buckets=["models"]))
        os.environ[ENDPOINT] = server.endpoint_url
        size = make_model(root / "fp32", num_layers, torch.float32)
        make_model(root / "fp16", num_layers, torch.float16, as_bin=True)
        url = "s3://models/fp32"
        store = S3Store(url, _storage())
        for path in (root / "fp32").iterdir():
            store.upload(path, path.name)

        cases = {"fp32 safetensors, disk": root / "fp32", "fp32 safetensors, S3": url}
        if not quick:
            cases["fp16 .bin as fp32, disk"] = root / "fp16"
        loading = {case: _start("load", place) for case, place in cases.items()}
        converting = _start("convert", root / "fp16", root / "converted")
        for case, process in loading.items():
            what = f"load a model ({case}): peak memory above that before"
            yield _memory(what, _answer(process)["memory"], size, 1.15)
        what = "model convert (fp16 .bin): peak memory above that before"
        yield _memory(what, _answer(converting)["memory"], size // 2, 1.0)

        yield _shares(root / "fp32", size)
        yield from _speed(store, size, quick=quick)


def make_model(folder: Path, num_layers: int, dtype: torch.dtype, *, as_bin: bool = False) -> int:
    """Write a model folder. Returns the bytes of its weights in fp32."""
    config = ModelConfig(
        vocab_size=20_000, dim_model=1024, num_heads=16, dim_head=64, dim_ff=2560, num_layers=num_layers
    )
    with torch.device("meta"):
        layout = {name: p.detach().to(dtype) for name, p in CpmBee(config).named_parameters()}
    noise = torch.rand(max(t.numel() for t in layout.values()), generator=torch.Generator().manual_seed(0)).to(dtype)
    tensors = ((name, noise[: t.numel()].view(t.shape)) for name, t in layout.items())
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    (folder / "vocab.txt").write_text("<pad>\n", encoding="utf-8")
    if as_bin:
        save_pickled(dict(tensors), folder / "pytorch_model.bin")
    else:
        save_weights(layout, folder, tensors, shard_bytes=4 << 30)
    return 4 * sum(t.numel() for t in layout.values())


class Unkept:
    """An object that is read by ranges without a cache."""

    def __init__(self, store: S3Store, found: ObjectInfo) -> None:
        self.name, self.size, self.tag = found.key, found.size, found.etag
        self._store = store

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> None:
        self._store.read_into(self.name, start, buffers, self.tag)

    def is_near(self, start: int, length: int) -> bool:  # noqa: ARG002 (nothing is cached)
        return False


class Counted:
    """A file of weights that counts the bytes read."""

    def __init__(self, file: WeightFile) -> None:
        self._file = file
        self.name, self.size, self.tag, self.is_near = file.name, file.size, file.tag, file.is_near
        self.num_bytes = 0

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> None:
        length = sum(map(len, buffers))
        if length > LARGEST_TABLE:
            self.num_bytes += length
        self._file.read_into(start, buffers)


def _speed(store: S3Store, size: int, *, quick: bool) -> Iterator[Figure]:
    (found,) = (entry for entry in store.list() if entry.key.endswith(".safetensors"))
    client = boto3.client("s3", endpoint_url=os.environ[ENDPOINT], region_name="us-east-1")
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")

    def plain() -> None:
        data = client.get_object(Bucket=bucket, Key=f"{prefix}/{found.key}")["Body"].read()
        assert len(data) == found.size

    kept = fetch_model(store.url, _storage())
    unkept = ModelFiles(kept.config, kept.vocab, (Unkept(store, found),))

    pieces = StoredWeights(unkept.weights).pieces()

    def read() -> None:
        memory = torch.empty(found.size, dtype=torch.uint8).numpy().data

        def one(piece: WeightPiece) -> None:
            piece.file.read_into(piece.start, [memory[piece.start : piece.start + piece.nbytes]])

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(one, pieces))

    def load() -> None:
        load_model(unkept, torch.float32, CPU)

    def load_and_keep() -> None:
        load_model(kept, torch.float32, CPU)

    def before() -> None:
        shutil.rmtree(Path(os.environ["CPMBEE_CACHE"]) / "ranges", ignore_errors=True)
        settle(size)

    cases = (
        ("S3 read: all weights by ranges into memory", read, 1.3),
        ("S3 to a model: read, check, digest", load, None),
        ("S3 to a model, also cached on disk", load_and_keep, None),
    )
    for what, ours, mark in cases[:1] if quick else cases:
        seconds, baseline = paired(ours, plain, 3 if mark and not quick else 1, before)
        yield Figure(
            what,
            _rate(size, seconds),
            f"{_rate(size, baseline)}, one get_object",
            baseline / seconds,
            mark,
        )


def _shares(folder: Path, size: int) -> Figure:
    address = rendezvous()
    ranks = [
        _start("rank", folder, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", **address)
        for rank in range(2)
    ]
    shares = [_answer(rank)["bytes"] for rank in ranks]
    return Figure(
        "load by 2 ranks: bytes read by each",
        " + ".join(f"{share / 1e6:.0f}" for share in shares) + " MB",
        f"{size / 1e6:.0f} MB, the weights",
        sum(shares) / size,
        1.01,
        "at most",
    )


def _memory(what: str, peak: int, size: int, mark: float) -> Figure:
    return Figure(what, f"{peak / 1e6:.0f} MB", f"{size / 1e6:.0f} MB, the weights", peak / size, mark, "at most")


def _rate(num_bytes: int, seconds: float) -> str:
    return f"{num_bytes / 1e9 / seconds:.2f} GB/s"


def _storage() -> StorageSpec:
    return StorageSpec(endpoint_url=os.environ[ENDPOINT])


def _start(*arguments: object, **env: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.loading", *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | env, stdout=subprocess.PIPE, text=True)


def _answer(process: "subprocess.Popen[str]") -> dict[str, Any]:
    output, _ = process.communicate()
    assert process.returncode == 0, process.args
    return dict(json.loads(output))


def _load(url: str) -> dict[str, int]:
    files = fetch_model(url, _storage())
    load_model(files, torch.float32, CPU)
    return {}


def _convert(url: str, out: str) -> dict[str, int]:
    convert(url, out, StoreOptions())
    return {}


def _rank(url: str) -> dict[str, int]:
    world = World.init()
    files = fetch_model(url)
    counted = tuple(map(Counted, files.weights))
    load_model(ModelFiles(files.config, files.vocab, counted), torch.float32, CPU, world)
    world.destroy()
    return {"bytes": sum(file.num_bytes for file in counted)}


def _process_memory(what: str) -> int:
    """Return memory of this process in bytes: `VmRSS` is the current value, `VmHWM` the peak."""
    found = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def main() -> None:
    match sys.argv[1:]:
        case ["load" | "convert" | "rank" as what, *arguments]:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
            before = _process_memory("VmRSS")
            works: dict[str, Callable[..., dict[str, Any]]] = {"load": _load, "convert": _convert, "rank": _rank}
            report = works[what](*arguments)
            print(json.dumps(report | {"memory": _process_memory("VmHWM") - before}))
        case options:
            for figure in figures(quick="quick" in options):
                reached = {None: "", True: "reached", False: "MISSED"}[figure.reached]
                print(
                    f"{figure.what:75}{figure.ours:>22}  {figure.baseline:32}{figure.ratio:6.3f}  {reached}", flush=True
                )


if __name__ == "__main__":
    main()
