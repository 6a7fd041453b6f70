"""One rank of a world that loads a model: `python -m tests.integration.load_together URL [ENDPOINT] [BREAK] [KEPT]`.

Prints one JSON line: what was loaded and how many bytes this rank has read, or the error. BREAK is the rank whose reads
fail. KEPT is a file for what the rank keeps, one of equal shares of each layer's weights, cut anywhere.
"""

import json
import os
import sys
from collections.abc import Sequence

import torch

from cpmbee_job.errors import CpmbeeError, StoreError
from cpmbee_job.model.locate import fetch_model
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.weights.model_folder import Kept, ModelFiles, keep_whole, load_model
from cpmbee_job.model.weights.weight_file import WeightFile
from cpmbee_job.spec import StorageSpec
from cpmbee_job.train.world import World

HEADERS = 1 << 16
"""Reads up to this size are of the tables, which every rank reads."""


class Counted:
    """A weights file that counts what is read of it, and may fail."""

    def __init__(self, file: WeightFile, broken: bool) -> None:
        self._file = file
        self._broken = broken
        self.num_bytes = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> None:
        length = sum(map(len, buffers))
        if length > HEADERS:
            if self._broken:
                raise StoreError(f"{self._file.name}: planned by a test")
            self.num_bytes += length
        self._file.read_into(start, buffers)


def keep_shares(model: CpmBee, world: World, kept: dict[str, Kept]) -> dict[str, Kept]:
    kept |= keep_whole(model, dtype=torch.float32, device=world.device)
    for name, parameter in model.encoder.layers.named_parameters(prefix="encoder.layers"):
        start, end = (parameter.numel() * rank // world.size for rank in (world.rank, world.rank + 1))
        kept[name] = Kept(torch.empty(end - start), start)
    return kept


def main() -> None:
    url, endpoint_url, broken, place = [*sys.argv[1:], "", "", ""][:4]
    storage = StorageSpec(endpoint_url=endpoint_url or None)
    world = World.init()
    try:
        files = world.on_all_ranks(lambda: fetch_model(url, storage))
        counted = [Counted(file, broken == str(world.rank)) for file in files.weights]
        files = ModelFiles(files.config, files.vocab, tuple(counted))
        if place:
            kept: dict[str, Kept] = {}
            model = load_model(files, torch.float32, world.device, world, keep=lambda m: keep_shares(m, world, kept))
            torch.save({name: share.elements for name, share in kept.items()}, f"{place}.{world.rank}")
        else:
            model = load_model(files, torch.float32, world.device, world)
        report = {
            "digest": model.base_digest,
            "sum": 0.0 if place else sum(parameter.double().sum().item() for parameter in model.parameters()),
            "bytes": sum(file.num_bytes for file in counted),
        }
        world.destroy()
    except CpmbeeError as error:
        report = {"error": f"{type(error).__name__}: {error.message}"}
    sys.stdout.write(json.dumps(report))
    sys.stdout.flush()
    os._exit(0)  # after a failure no peer answers a shutdown


if __name__ == "__main__":
    main()
