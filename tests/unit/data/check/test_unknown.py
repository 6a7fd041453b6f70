from pathlib import Path

import pytest

from cpmbee_job.data.check.report import Unknown
from cpmbee_job.data.check.unknown import UnknownCounter
from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.data.encode.examples import Example
from cpmbee_job.data.encode.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tiny_vocab: Path) -> Tokenizer:
    return Tokenizer.from_file(tiny_vocab)


def of(tokenizer: Tokenizer, *examples: Example) -> Unknown:
    counter = UnknownCounter(tokenizer)
    for number, example in enumerate(examples, start=1):
        counter.add(encode_example(tokenizer, example), f"file:{number}")
    return counter.report()


def test_every_occurrence_of_a_character_is_counted(tokenizer: Tokenizer) -> None:
    found = of(
        tokenizer, {"q": "a", "<ans>": "b"}, {"q": "🙂🙃a🙂🙃a🙂", "<ans>": "<option_3>🙃"}, {"q": "🙂", "<ans>": ""}
    )
    assert (found.characters, found.pieces, found.examples, found.different) == (7, 5, 2, 2)
    assert [(one.character, one.code_point, one.count) for one in found.most_frequent] == [
        ("🙂", "U+1F642", 4),
        ("🙃", "U+1F643", 3),
    ]


def test_the_first_location_of_a_character_is_reported(tokenizer: Tokenizer) -> None:
    found = of(tokenizer, {"<ans>": "a"}, {"<ans>": "🙂"}, {"<ans>": "🙃🙂"})
    assert {one.character: one.first for one in found.most_frequent} == {"🙂": "file:2", "🙃": "file:3"}


def test_only_the_most_frequent_are_named(tokenizer: Tokenizer) -> None:
    found = of(tokenizer, {"<ans>": "".join(chr(0x1F600 + number) for number in range(30))}, {"<ans>": "\U0001f61d"})
    assert found.different == 30
    assert len(found.most_frequent) == 10
    assert found.most_frequent[0].character == "\U0001f61d"


def test_special_tokens_of_the_vocabulary_are_known(tokenizer: Tokenizer) -> None:
    assert of(tokenizer, {"q": "<mask_7><unk><unk_2>", "<ans>": "<option_1>"}).characters == 0
