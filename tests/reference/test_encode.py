"""Encode like the original."""

import json
from pathlib import Path
from typing import Any

import pytest

from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.data.encode.examples import check_example
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.read.formats import ccpm_example
from tests.conftest import needs_reference

pytestmark = needs_reference

ARRAYS = ["input_ids", "input_id_subs", "context", "segment_ids", "segment_rel"]


def read_rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("strict", [True, False])
def test_every_example_has_the_originals_arrays(reference: Path, strict: bool) -> None:
    tokenizer = Tokenizer.from_file(reference / "model" / "vocab.txt")
    for record in read_rows(reference / "reference" / "encode.jsonl"):
        encoded = encode_example(tokenizer, check_example(record["data"]), strict=strict)
        assert {name: getattr(encoded, name).tolist() for name in ARRAYS} == {name: record[name] for name in ARRAYS}
        assert encoded.num_segments == record["num_segments"]
        assert {str(token_id): token for token_id, token in encoded.ext_table.items()} == record["ext_table"]


def test_all_of_ccpm_is_converted_without_loss(reference: Path) -> None:
    for path in (reference / "data" / "ccpm").glob("*.jsonl"):
        for record in read_rows(path):
            example = ccpm_example(record)
            options = example["options"]
            assert isinstance(options, dict)
            marked = "".join(f"[{number}]{option}" for number, option in enumerate(options.values()))
            assert f"[翻译]{example['input']}{marked}[答案]" == record["input"]
            assert example["<ans>"] == f"<option_{record['target']}>"
