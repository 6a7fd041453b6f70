"""One rank of a world that loads a model: `python -m tests.integration.load_together URL [ENDPOINT_URL] [BREAK]`.

Prints one JSON line: what was loaded and how many bytes this rank has read, or the error. BREAK is the rank whose reads
fail.
"""

import json
import os
import sys
from collections.abc import Sequence

import torch

from cpmbee_job.errors import CpmbeeError, StoreError
from cpmbee_job.eval.files import fetch_model
from cpmbee_job.model.sources import WeightFile
from cpmbee_job.model.weights import ModelFiles, load_model
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


def main() -> None:
    url, endpoint_url, broken = [*sys.argv[1:], "", ""][:3]
    storage = StorageSpec(endpoint_url=endpoint_url or None)
    world = World.form()
    try:
        files = world.together(lambda: fetch_model(url, storage))
        counted = [Counted(file, broken == str(world.rank)) for file in files.weights]
        files = ModelFiles(files.config, files.vocab, tuple(counted))
        model = load_model(files, torch.float32, world.device, world)
        report = {
            "digest": model.base_digest,
            "sum": sum(parameter.double().sum().item() for parameter in model.parameters()),
            "bytes": sum(file.num_bytes for file in counted),
        }
        world.leave()
    except CpmbeeError as error:
        report = {"error": f"{type(error).__name__}: {error.message}"}
    sys.stdout.write(json.dumps(report))
    sys.stdout.flush()
    os._exit(0)  # a world that has failed has nobody to say goodbye to


if __name__ == "__main__":
    main()
