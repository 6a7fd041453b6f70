"""A data set that the original code wrote."""

import json
from pathlib import Path

from cpmbee_job.data.dataset.original import read_original
from cpmbee_job.store.urls import open_store
from tests.conftest import needs_reference


@needs_reference
def test_the_originals_data_set_holds_the_examples_it_was_made_of(reference: Path) -> None:
    folder = open_store(str(reference / "reference" / "original_dataset"))
    records = list(read_original(folder))
    rows = (reference / "reference" / "packed_rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [content for _, _, content in records] == [json.loads(row) for row in rows]
    assert records[3][0].endswith("data: block 0")
    assert records[3][1] == 3
