"""Read a dataset that the original code wrote."""

import json
from pathlib import Path

from cpmbee_job.data.dataset.original import read_original
from cpmbee_job.store.urls import open_store
from tests.conftest import needs_reference


@needs_reference
def test_the_originals_dataset_contains_its_examples(reference: Path) -> None:
    folder = open_store(str(reference / "reference" / "original_dataset"))
    records = list(read_original(folder))
    lines = (reference / "reference" / "packed_rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [content for _, _, content in records] == [json.loads(line) for line in lines]
    assert records[3][0].endswith("data: block 0")
    assert records[3][1] == 3
