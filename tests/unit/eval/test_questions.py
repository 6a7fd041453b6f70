import pytest

from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.errors import DataError
from cpmbee_job.eval.questions import ask

NESTED = {"input": "今天🙂<mask_0>", "<ans>": {"a": "x", "b": {"c": "y", "d": ""}}, "question": "天<mask_7>气☃"}


def test_a_question_has_no_token_of_the_answer(tokenizer):
    with_answer, without = (ask(tokenizer, {**NESTED, "<ans>": answer}) for answer in ("天天", ""))
    assert with_answer.ids.tolist() == without.ids.tolist()
    encoded = encode_example(tokenizer, {**NESTED, "<ans>": ""})
    assert with_answer.ids.tolist() == encoded.input_ids[encoded.context == 1].tolist()


def test_answers_have_a_segment_each(tokenizer):
    question = ask(tokenizer, NESTED)
    encoded = encode_example(tokenizer, NESTED)
    assert question.answer_segments == tuple(sorted(set(encoded.segment_ids[encoded.context == 0].tolist())))
    assert len(question.answer_segments) == 3


def test_answers_replace_the_texts(tokenizer):
    answered = ask(tokenizer, NESTED).answered(["1", None, "3"])
    assert answered == {**NESTED, "<ans>": {"a": "1", "b": {"c": None, "d": "3"}}}
    assert list(answered) == list(NESTED)
    assert ask(tokenizer, {"<ans>": ""}).answered(["z"]) == {"<ans>": "z"}


def test_texts_lists_tokens_missing_in_the_vocabulary(tokenizer):
    mask, unknown = tokenizer.token_id("<mask>"), tokenizer.unk_id
    texts = {(mask, 0): "<mask_0>", (mask, 1): "<mask_7>", (unknown, 0): "🙂", (unknown, 1): "☃"}
    assert ask(tokenizer, NESTED).texts == texts


@pytest.mark.parametrize("answer", [{}, {"a": {}}])
def test_nothing_to_answer_is_an_error(tokenizer, answer):
    with pytest.raises(DataError, match="contains no text"):
        ask(tokenizer, {"input": "x", "<ans>": answer})
