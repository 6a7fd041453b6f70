from pathlib import Path

import pytest

from cpmbee_job.run import keys
from cpmbee_job.run.attempts import move_pointer
from cpmbee_job.run.deltas import prune_deltas
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"))


def test_prune_keeps_new_and_pointed_deltas(store: Store) -> None:
    for step in (2, 4, 6, 8):
        store.put(f"{keys.delta_prefix(step, 1)}manifest.json", b"{}")
        store.put(f"{keys.delta_prefix(step, 1)}delta.safetensors", b"")
    move_pointer(store, keys.BEST, {"prefix": keys.delta_prefix(2, 1)}, attempt=1)
    prune_deltas(store, keep=1, attempt=1)
    assert {o.key.split("/")[1] for o in store.list("delta/")} == {"2.1", "8.1", "BEST"}
