import dataclasses

import pytest
import torch

from cpmbee_job.data.dataset.collate import collate_examples
from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.errors import UsageError
from cpmbee_job.eval.generate import BeamOptions, Generator
from cpmbee_job.eval.questions import ask, question_inputs
from cpmbee_job.model.net.cpmbee import CpmBee, init_weights
from cpmbee_job.model.net.decoding import BeamDecoder
from cpmbee_job.model.net.inputs import ModelInputs
from tests.oracle import target_logits

CHOICE = {"input": "今天天气", "options": {"<option_0>": "很好", "<option_1>": "不错"}, "<ans>": ""}
NESTED = {"document": "天<mask_0>气<mask_1>🙂", "<ans>": {"a": "", "b": ""}, "question": "hello"}
PLAIN = {"input": "hello the question, 今天天气很好不错", "<ans>": ""}


def forced_logits(model, tokenizer, example, words, columns):
    """Logits of the decoder when it is fed the answer's own tokens, in a batch with another question."""
    questions = [ask(tokenizer, PLAIN), ask(tokenizer, example)]
    decoder = BeamDecoder(model, question_inputs(questions, columns), num_beams=2)
    logits = []
    for step, (token, sub, segment, position) in enumerate(words):
        if step == 2:
            decoder.select([1], [[1, 1]])
        size = 2 if step < 2 else 1
        fed = [torch.full((size, 2), value, dtype=torch.int32) for value in (token, sub, segment, position)]
        logits.append(decoder.step(*fed)[-1, 1])
    return torch.stack(logits)


@pytest.mark.parametrize("masks", [None, ((False, True), (True, False))])
@pytest.mark.parametrize(
    "example",
    [{**CHOICE, "<ans>": "<option_1>很好"}, {**PLAIN, "<ans>": "天气, 不错!"},
     {**NESTED, "<ans>": {"a": "<mask_1>天", "b": "气"}}],
)  # fmt: skip
def test_token_by_token_is_the_same_as_all_at_once(model, tokenizer, example, masks):
    if masks is not None:
        model = CpmBee(dataclasses.replace(model.config, mask_modules=masks))
        init_weights(model, seed=1)
    encoded = encode_example(tokenizer, example)
    collated = collate_examples([encoded], tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    inputs = ModelInputs.from_numpy(**vars(collated))
    with torch.no_grad():
        expected = target_logits(model, inputs, model(inputs))
    answer = encoded.context == 0
    segments = encoded.segment_ids[answer].tolist()
    positions = [position - segments.index(segment) for position, segment in enumerate(segments)]
    words = zip(
        encoded.input_ids[answer].tolist(), encoded.input_id_subs[answer].tolist(), segments, positions, strict=True
    )
    columns = list(zip(collated.ext_ids.tolist(), collated.ext_subs.tolist(), strict=True))
    logits = forced_logits(model, tokenizer, example, words, columns)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [BeamOptions(1, 8), BeamOptions(3, 12, 1.2), BeamOptions(4, 20)])
def test_answers_do_not_depend_on_the_batch(model, tokenizer, options):
    examples = [
        CHOICE,
        NESTED,
        PLAIN,
        {**CHOICE, "input": "很好" * 20},
        {"<ans>": {"x": "", "y": {"z": ""}}, "the": "好🙂☃"},
    ]
    generator = Generator(model, tokenizer, options)
    alone = [generator.answer([ask(tokenizer, example)])[0] for example in examples]
    questions = [ask(tokenizer, example) for example in examples]
    assert generator.answer(questions) == alone
    assert generator.answer(questions[::-1]) == alone[::-1]


def test_answers_use_the_examples_own_special_tokens_only(model, tokenizer):
    examples = [{"input": f"<option_{n}>天气🙂{'好' * n}", "<ans>": ""} for n in range(6)]
    generator = Generator(model, tokenizer, BeamOptions(2, 20))
    for number, row in enumerate(generator.answer([ask(tokenizer, example) for example in examples])):
        assert all(f"<option_{other}>" not in row["<ans>"] for other in range(6) if other != number)


def test_the_question_is_not_changed(model, tokenizer):
    example = {**NESTED, "<ans>": {"a": "old", "b": "old"}}
    (row,) = Generator(model, tokenizer, BeamOptions(1, 3)).answer([ask(tokenizer, example)])
    assert example["<ans>"] == {"a": "old", "b": "old"}
    assert row["document"] == example["document"]
    assert set(row["<ans>"]) == {"a", "b"}


def test_a_repetition_penalty_leads_to_fewer_repetitions(model, tokenizer):
    def repeated(penalty):
        (row,) = Generator(model, tokenizer, BeamOptions(1, 30, penalty)).answer([ask(tokenizer, PLAIN)])
        return len(row["<ans>"]) - len(set(row["<ans>"]))

    assert repeated(8.0) < repeated(1.0)


@pytest.mark.parametrize("options", [(0, 5, 1.0), (1, 0, 1.0), (1, 5, 0.5), (1, 5, float("nan"))])
def test_invalid_options_are_refused(options):
    with pytest.raises(UsageError):
        BeamOptions(*options)
