import random
from pathlib import Path

import pytest

from cpmbee_job.data.check.report import ExampleView
from cpmbee_job.data.check.view import view
from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.data.encode.examples import Example
from cpmbee_job.data.encode.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tiny_vocab: Path) -> Tokenizer:
    return Tokenizer.from_file(tiny_vocab)


def of(tokenizer: Tokenizer, example: Example) -> ExampleView:
    return view(tokenizer, encode_example(tokenizer, example), "file:1")


def test_segments_in_their_tree_with_the_answer_as_target(tokenizer: Tokenizer) -> None:
    found = of(tokenizer, {"input": "今天天气很好", "options": {"<option_0>": "a<<b"}, "<ans>": "<option_0>"})
    assert [(one.level, one.target, list(one.tokens)) for one in found.segments] == [
        (0, False, ["<root>"]),
        (1, False, ["input"]),
        (2, False, ["今天天气", "很", "好"]),
        (1, False, ["options"]),
        (2, False, ["<option_0>"]),
        (3, False, ["a", "<<", "b"]),
        (1, False, ["<ans>"]),
        (2, True, ["<option_0>", "</s>"]),
    ]


def test_the_only_target_of_an_empty_answer_is_its_end(tokenizer: Tokenizer) -> None:
    assert of(tokenizer, {"<ans>": ""}).segments[-1].tokens == ("</s>",)


def test_the_number_of_targets_is_the_number_of_target_tokens(tokenizer: Tokenizer) -> None:
    found = of(tokenizer, {"q": "a", "<ans>": {"a": "hello", "b": {"c": "", "d": "abc"}}})
    assert sum(len(one.tokens) for one in found.segments if one.target) == found.target_tokens == 7


def test_tokens_missing_from_the_vocabulary_are_marked(tokenizer: Tokenizer) -> None:
    found = of(tokenizer, {"q": "🙂a<mask_7><mask_2>🙃🙂", "<ans>": "🙂"})
    assert found.segments[2].tokens == ("<unk:🙂>", "a", "<mask_7>", "<mask_2>", "<unk:🙃🙂>")
    assert found.segments[-1].tokens == ("<unk:🙂>", "</s>")


def test_the_keys_of_an_answer_have_the_order_of_training(tokenizer: Tokenizer) -> None:
    example: Example = {"<ans>": {letter: letter for letter in "abcdefg"}}
    encoded = encode_example(tokenizer, example, answer_order=random.Random(1))
    letters = [one.tokens[0] for one in view(tokenizer, encoded, "x").segments if one.target]
    assert sorted(letters) == list("abcdefg") != letters


def test_omitted_tokens_and_segments_are_counted(tokenizer: Tokenizer) -> None:
    found = of(tokenizer, {"q": "a" * 100, **{f"k{number}": "x" for number in range(50)}, "<ans>": "b"})
    assert len(found.segments) == 40
    assert found.more_segments == 1 + 2 * 52 - 40
    assert found.segments[-1].tokens == ("b", "</s>")
    assert (len(found.segments[2].tokens), found.segments[2].more_tokens) == (48, 52)
