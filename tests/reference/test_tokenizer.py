"""Tokenize like the original."""

import json
from pathlib import Path

import pytest

from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.errors import DataError
from tests.conftest import needs_reference

pytestmark = needs_reference


@pytest.fixture(scope="module")
def tokenizer(reference: Path) -> Tokenizer:
    return Tokenizer.from_file(reference / "model" / "vocab.txt")


def test_every_text_is_encoded_and_decoded_as_in_the_original(tokenizer: Tokenizer, reference: Path) -> None:
    for line in (reference / "reference" / "tokenizer.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "error" in record:
            with pytest.raises(DataError):
                tokenizer.encode(record["text"], strict=True)
            tokenizer.encode(record["text"])
            continue
        ids, ext_table = tokenizer.encode(record["text"], strict=True)
        assert ids == record["ids"]
        assert {str(token_id): token for token_id, token in ext_table.items()} == record["ext_table"]
        assert tokenizer.decode(ids, ext_table) == record["decoded"]


def test_the_tutorials_second_dialogue_form_is_read(tokenizer: Tokenizer) -> None:
    ids, ext_table = tokenizer.encode("<问题>你好\n<答案>")
    assert ext_table == {}
    assert tokenizer.decode(ids) == "<<问题>你好\n<<答案>"
