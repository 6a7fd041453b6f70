import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.encode.truncate import truncate_context
from tests.conftest import TINY_VOCAB

TINY = Tokenizer.from_bytes("\n".join(TINY_VOCAB).encode())


def texts(encoded):
    """Return the text of each segment."""
    return [
        TINY.decode(encoded.input_ids[encoded.segment_ids == segment].tolist())
        for segment in range(encoded.num_segments)
    ]


def test_the_middle_of_the_longest_text_is_cut():
    encoded = encode_example(TINY, {"input": "0123456789", "question": "abcd", "<ans>": "ABCDEFGHIJ"})
    shortened = truncate_context(TINY, encoded, encoded.input_ids.size - 5)
    assert texts(shortened)[2] == "<s>01289</s>"
    assert [t for n, t in enumerate(texts(shortened)) if n != 2] == [t for n, t in enumerate(texts(encoded)) if n != 2]


def test_special_tokens_of_a_text_stay():
    encoded = encode_example(TINY, {"input": "ab<mask_0>cd<mask_1>ef", "<ans>": {"<mask_0>": "x", "<mask_1>": "y"}})
    shortened = truncate_context(TINY, encoded, encoded.input_ids.size - 6)
    assert texts(shortened)[2] == "<s><mask><mask></s>"
    assert sorted(set(shortened.input_id_subs.tolist())) == sorted(set(encoded.input_id_subs.tolist()))


def test_keys_and_answer_alone_may_be_too_long():
    assert truncate_context(TINY, encode_example(TINY, {"a long key": "", "<ans>": "a long answer"}), 20) is None


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6), answer=st.integers(0, 10), data=st.data())
def test_the_example_gets_the_given_length_and_only_the_longest_texts_are_cut(lengths, answer, data):
    example = {f"k{n}": "天" * length for n, length in enumerate(lengths)} | {"<ans>": "好" * answer}
    encoded = encode_example(TINY, example)
    size = encoded.input_ids.size
    max_length = data.draw(st.integers(size - sum(lengths), size - 1)) if sum(lengths) else size
    shortened = truncate_context(TINY, encoded, max_length)
    assert shortened.input_ids.size == max_length
    left = [text.count("天") for text in texts(shortened)]
    before = [text.count("天") for text in texts(encoded)]
    cut = [now for now, then in zip(left, before, strict=True) if now < then]
    assert not cut or max(left) - min(cut) <= 1
    assert left[-1] == before[-1]
    assert np.all(np.diff(shortened.segment_ids) >= 0)
