import random
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.data.encode.examples import Example
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.errors import DataError
from tests.conftest import TINY_VOCAB

TINY = Tokenizer.from_bytes("\n".join(TINY_VOCAB).encode())


@pytest.fixture
def tokenizer(tiny_vocab: Path) -> Tokenizer:
    return Tokenizer.from_file(tiny_vocab)


def relation(example: Example, tokenizer: Tokenizer, a: int, b: int) -> int:
    encoded = encode_example(tokenizer, example)
    return int(encoded.segment_rel.reshape(encoded.num_segments, -1)[a, b])


def test_every_segment_except_the_answer_is_between_bos_and_eos(tokenizer: Tokenizer) -> None:
    encoded = encode_example(tokenizer, {"input": "a", "<ans>": "b"})
    words = [TINY_VOCAB[i] for i in encoded.input_ids]
    assert words == [
        "<s>",
        "<root>",
        "</s>",
        "<s>",
        "input",
        "</s>",
        "<s>",
        "a",
        "</s>",
        "<s>",
        "<ans>",
        "</s>",
        "<s>",
        "b",
    ]
    assert encoded.context.tolist() == [1] * 12 + [0] * 2
    assert encoded.segment_ids.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4]
    assert encoded.num_segments == 5


def test_arrays_have_the_types_of_the_original_or_smaller(tokenizer: Tokenizer) -> None:
    encoded = encode_example(tokenizer, {"<ans>": ""})
    types = [encoded.input_ids.dtype, encoded.input_id_subs.dtype, encoded.context.dtype, encoded.segment_ids.dtype]
    assert types == [np.int32, np.int32, np.int8, np.int32]
    assert encoded.segment_rel.dtype == np.uint8


def test_numbered_tokens_have_different_sub_ids(tokenizer: Tokenizer) -> None:
    encoded = encode_example(tokenizer, {"input": "<mask_5><mask_2>🙂<mask_5>𠮷", "<ans>": "<mask_2>"})
    extended = encoded.segment_ids == 2
    mask, unk = TINY_VOCAB.index("<mask>"), TINY_VOCAB.index("<unk>")
    assert encoded.input_ids[extended].tolist()[1:-1] == [mask, mask, unk, mask, unk]
    assert encoded.input_id_subs[extended].tolist()[1:-1] == [0, 1, 0, 0, 1]
    assert encoded.input_id_subs[-1] == 1
    assert list(encoded.ext_table.values()) == ["<mask_5>", "<mask_2>", "🙂", "𠮷"]
    assert {base: list(numbers.values()) for base, numbers in encoded.token_id_table.items()} == {
        "<mask>": [0, 1],
        "<unk>": [0, 1],
    }


def test_relations_are_levels_up_and_levels_down(tokenizer: Tokenizer) -> None:
    # Segments: 0 root, 1 a, 2 b, 3 its text, 4 <ans>, 5 its text.
    example: Example = {"a": {"b": "x"}, "<ans>": "y"}
    assert relation(example, tokenizer, 3, 3) == 0
    assert relation(example, tokenizer, 0, 3) == 3 + 1
    assert relation(example, tokenizer, 3, 0) == 3 * 8 + 1
    assert relation(example, tokenizer, 3, 5) == 3 * 8 + 2 + 1


def test_levels_beyond_the_eighth_share_a_bucket(tokenizer: Tokenizer) -> None:
    deep: Example = {"k": "x"}
    for _ in range(12):
        deep = {"k": deep}
    encoded = encode_example(tokenizer, {**deep, "<ans>": ""})
    relations = encoded.segment_rel.reshape(encoded.num_segments, -1)
    assert relations[0, 7] == relations[0, 12] == 7 + 1


TREES = st.recursive(st.just("x"), lambda inner: st.dictionaries(st.sampled_from("abc"), inner), max_leaves=20)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), TREES, max_size=3))
def test_relations_of_any_tree_are_those_of_its_paths(tree: Example) -> None:
    paths = [("root",)]

    def walk(node: Example | str, path: tuple[str, ...]) -> None:
        for key, value in node.items() if isinstance(node, dict) else [("text", "")]:
            paths.append((*path, key))
            if key != "text":
                walk(value, paths[-1])

    walk({**tree, "<ans>": ""}, paths[0])
    encoded = encode_example(TINY, {**tree, "<ans>": ""})
    expected = []
    for a in paths:
        for b in paths:
            shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
            bucket = min(len(a) - shared, 7) * 8 + min(len(b) - shared, 7)
            expected.append(bucket + 1 if bucket else 0)
    assert encoded.segment_rel.tolist() == expected


def test_large_trees_have_the_relations_of_small_ones(tokenizer: Tokenizer) -> None:
    example: Example = {**{str(n): "x" for n in range(60)}, "<ans>": ""}
    encoded = encode_example(tokenizer, example)
    relations = encoded.segment_rel.reshape(encoded.num_segments, -1)
    assert encoded.num_segments == 123
    assert relations[1, 121] == 1 * 8 + 1 + 1
    assert relations[2, 121] == 2 * 8 + 1 + 1


def test_keys_of_a_nested_answer_are_given_and_their_texts_predicted(tokenizer: Tokenizer) -> None:
    encoded = encode_example(tokenizer, {"<ans>": {"a": "b", "c": {"d": "e"}}})
    predicted = sorted(set(encoded.segment_ids[encoded.context == 0].tolist()))
    assert predicted == [3, 6]


def test_a_nested_answer_key_is_not_the_answer(tokenizer: Tokenizer) -> None:
    encoded = encode_example(tokenizer, {"a": {"<ans>": "b"}, "<ans>": ""})
    assert sorted(set(encoded.segment_ids[encoded.context == 0].tolist())) == [5]


def test_answers_are_shuffled_by_the_given_random_numbers_only(tokenizer: Tokenizer) -> None:
    example: Example = {"q": {"x": "1", "y": "2"}, "<ans>": {c: c for c in "abcdefgh"}}
    plain = encode_example(tokenizer, example).input_ids.tolist()
    shuffled = [encode_example(tokenizer, example, answer_order=random.Random(3)).input_ids.tolist() for _ in range(2)]
    assert shuffled[0] == shuffled[1] != plain
    first_answer_key = plain.index(TINY_VOCAB.index("a"))
    assert shuffled[0][: first_answer_key - 1] == plain[: first_answer_key - 1]
    assert sorted(shuffled[0]) == sorted(plain)


def test_literals_are_counted_for_each_example(tokenizer: Tokenizer) -> None:
    assert encode_example(tokenizer, {"input": "a<b <问题>", "<ans>": ""}).literals == 2
    assert encode_example(tokenizer, {"input": "a<<b", "<ans>": ""}).literals == 0


@pytest.mark.parametrize("text", ["<问题>", "a<", "<s_>x</n>"])
def test_strict_names_the_path_but_not_the_text(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(DataError, match=r"^options\.first: ") as caught:
        encode_example(tokenizer, {"options": {"first": text}, "<ans>": ""}, strict=True)
    assert "问题" not in str(caught.value)


def test_unknown_pieces_that_look_like_special_tokens_are_unknown_pieces() -> None:
    poor = Tokenizer.from_bytes("\n".join(token for token in TINY_VOCAB if token not in "<>").encode())
    encoded = encode_example(poor, {"input": "<☃>", "<ans>": ""})
    assert encoded.ext_table == {poor.vocab_size: "<☃>"}
    assert encoded.input_ids[encoded.segment_ids == 2].tolist() == [poor.bos_id, poor.unk_id, poor.eos_id]


def test_strict_names_the_path_of_a_key(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"^options\.<问题>: "):
        encode_example(tokenizer, {"options": {"<问题>": "a"}, "<ans>": ""}, strict=True)
