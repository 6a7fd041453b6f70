import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cpmbee_job.errors import RefusedError
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import claim_attempt, first_start, move_pointer, newest_attempt
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"))


def test_concurrent_attempts_get_different_numbers(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: claim_attempt(store, 1), range(8)))
    assert sorted(numbers) == list(range(1, 9))
    assert newest_attempt(store) == 8
    assert first_start(store) > 0


def test_older_attempt_does_not_move_a_pointer(store: Store) -> None:
    move_pointer(store, keys.BEST, {"step": 9}, attempt=3)
    with pytest.raises(RefusedError, match="newer attempt"):
        move_pointer(store, keys.BEST, {"step": 12}, attempt=2)
    assert json.loads(store.get(keys.BEST))["step"] == 9
