"""The newest intact checkpoint is found, and an older attempt cannot overwrite a newer one."""

import json
from pathlib import Path

import pytest
import torch

from cpmbee_job.errors import RefusedError, StoreError
from cpmbee_job.launch.runs.verify import list_checkpoints
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import claim_attempt, record_begin
from cpmbee_job.run.checkpoints import prune_checkpoints
from cpmbee_job.store.base import Store
from cpmbee_job.store.files import FileStore
from cpmbee_job.store.urls import open_store
from cpmbee_job.train.engine.interface import EngineState
from cpmbee_job.train.output.checkpoint import newest_checkpoint, write_checkpoint


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"))


def write(store: Store, step: int, attempt: int = 1) -> None:
    state = EngineState({"parameter/a": torch.full((3,), float(step))}, {"loss_scale": {"value": 2.0}})
    write_checkpoint(store, step, attempt, state, {"step": step})


def newest_step(store: Store, warnings: list[str] | None = None) -> int | None:
    found = newest_checkpoint(store, warn=(warnings if warnings is not None else []).append)
    return None if found is None else found.progress["step"]


def test_a_written_checkpoint_is_read(store: Store) -> None:
    write(store, 7)
    found = newest_checkpoint(store, warn=pytest.fail)
    assert found is not None
    assert (found.stored.step, found.stored.attempt) == (7, 1)
    assert found.engine.tensors["parameter/a"].tolist() == [7.0, 7.0, 7.0]
    assert found.engine.values == {"loss_scale": {"value": 2.0}}
    assert json.loads(store.get(keys.LATEST)) == {"step": 7, "attempt": 1}


def test_no_checkpoint_is_none(store: Store) -> None:
    assert newest_step(store) is None


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing", "no manifest", "invalid manifest"])
def test_a_corrupt_checkpoint_is_skipped_with_a_warning(store: Store, damage: str) -> None:
    write(store, 5)
    write(store, 10)
    state, manifest = keys.state_key(10, 1), keys.manifest_key(10, 1)
    data = store.get(state)
    match damage:
        case "altered":
            store.put(state, data[:-1] + bytes([data[-1] ^ 1]))
        case "truncated":
            store.put(state, data[:-1])
        case "missing":
            store.delete(state)
        case "no manifest":
            store.delete(manifest)
        case "invalid manifest":
            store.put(manifest, b"{")
    warnings: list[str] = []
    assert newest_step(store, warnings) == 5
    assert bool(warnings) == (damage != "no manifest")


def test_the_newest_attempt_of_a_step_is_used(store: Store) -> None:
    write(store, 5, attempt=2)
    write(store, 5, attempt=10)
    store.delete(keys.state_key(5, 2))
    assert newest_step(store) == 5


def test_a_checkpoint_that_an_attempt_skipped_stays_skipped(store: Store) -> None:
    """A corrupt begin document is ignored."""
    write(store, 5)
    before = newest_checkpoint(store, warn=pytest.fail)
    record_begin(store, 2, before and before.pointer)
    write(store, 10)  # by attempt 1, which was presumed dead
    assert newest_step(store) == 5
    listed = list_checkpoints(store)
    assert [(one.step, one.is_overtaken) for one in listed] == [(10, True), (5, False)]
    store.put(keys.attempt_key(2, ".begin"), b"{")
    assert newest_step(store) == 10


def test_pruning_keeps_the_newest_checkpoints(store: Store) -> None:
    for step in (10, 20, 100):
        write(store, step)
    prune_checkpoints(store, keep=2, attempt=1)
    assert {o.key.split("/")[1] for o in store.list("checkpoints/")} == {"20", "100", "LATEST"}


def test_checkpoints_of_a_newer_attempt_are_not_pruned(store: Store) -> None:
    for step in (1, 2, 3):
        write(store, step, attempt=step)
    prune_checkpoints(store, keep=1, attempt=1)
    assert {o.key.split("/")[1] for o in store.list("checkpoints/")} == {"2", "3", "LATEST"}


def test_a_checkpoint_of_a_later_attempt_is_newer_whatever_its_step(store: Store) -> None:
    """Attempt 1 reached step 20, attempt 2 resumed from an earlier step."""
    write(store, 20, attempt=1)
    write(store, 12, attempt=2)
    prune_checkpoints(store, keep=1, attempt=2)
    assert newest_step(store) == 12


class FailingStore(FileStore):
    def get(self, key: str) -> bytes:
        raise StoreError(f"{key}: 503")


def test_an_outage_does_not_skip_a_checkpoint(store: Store) -> None:
    write(store, 5)
    with pytest.raises(StoreError, match="503"):
        newest_step(FailingStore(store.url))


def test_an_older_attempt_cannot_write_a_checkpoint(store: Store) -> None:
    write(store, 5, attempt=1)
    claim_attempt(store, 1)
    claim_attempt(store, 1)
    with pytest.raises(RefusedError, match="newer attempt"):
        write(store, 10, attempt=1)
    assert newest_step(store) == 5


def test_a_corrupt_pointer_is_overwritten(store: Store) -> None:
    store.put(keys.LATEST, b"{")
    write(store, 5, attempt=1)
    assert json.loads(store.get(keys.LATEST))["step"] == 5
