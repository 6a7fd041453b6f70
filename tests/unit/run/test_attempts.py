from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cpmbee_job.run.attempts import claim_attempt, first_start, newest_attempt
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
