import copy
import math

import pytest
import torch

from cpmbee_job.data.dataset.collate import collate_examples
from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.errors import DataError, ModelError
from cpmbee_job.eval.evaluate import Evaluator, ExampleScore, Summary
from cpmbee_job.model.net.inputs import ModelInputs

OPTIONS = {"<option_0>": "很好", "<option_1>": "不错", "<option_2>": "天气"}
CHOICES = [
    {"input": text, "options": OPTIONS, "<ans>": f"<option_{n}>"} for n, text in enumerate(["今天", "你他", "学家"])
]
PLAIN = {"input": "hello", "<ans>": "the 天气"}
NESTED = {"input": "<mask_0>🙂<mask_3>", "<ans>": {"<mask_0>": "天🙂", "<mask_3>": ""}}


def scores_of(model, tokenizer, examples, budget=8192):
    return list(Evaluator(model, tokenizer, budget).scores((f"f:{n}", e) for n, e in enumerate(examples)))


def alone(model, tokenizer, example) -> float:
    collated = collate_examples(
        [encode_example(tokenizer, example)], tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id
    )
    inputs = ModelInputs.from_numpy(**vars(collated))
    with torch.no_grad():
        return -model.target_losses(inputs, model(inputs)).sum().item()


@pytest.mark.parametrize("budget", [1, 100, 8192])
def test_the_score_of_an_example_does_not_depend_on_the_batch(model, tokenizer, budget):
    examples = [*CHOICES, PLAIN, NESTED, {"input": "x", "<ans>": ""}]
    expected = [alone(model, tokenizer, example) for example in examples]
    scores = scores_of(model, tokenizer, examples, budget)
    assert [s.logprob for s in scores] == pytest.approx(expected, abs=1e-4)
    assert [s.target_tokens for s in scores][-1] == 1


def test_a_choice_is_the_most_likely_option(model, tokenizer):
    for example, score in zip(CHOICES, scores_of(model, tokenizer, CHOICES), strict=True):
        by_option = {option: alone(model, tokenizer, {**example, "<ans>": option}) for option in OPTIONS}
        assert score.choice == max(by_option, key=by_option.__getitem__)
        assert score.correct == (score.choice == example["<ans>"])


def test_options_may_have_any_key(model, tokenizer):
    (score,) = scores_of(model, tokenizer, [{"选项": {"甲": "1", "乙": "2"}, "<ans>": "乙"}])
    assert score.choice in ("甲", "乙")


@pytest.mark.parametrize("example", [PLAIN, {**CHOICES[0], "<ans>": "很好"}, NESTED])
def test_other_answers_are_not_multiple_choice(model, tokenizer, example):
    (score,) = scores_of(model, tokenizer, [example])
    assert (score.choice, score.correct) == (None, None)
    assert score.to_dict().keys() == {"target_tokens", "logprob"}


def test_an_example_without_a_target_is_named(model, tokenizer):
    with pytest.raises(DataError, match="f:1: <ans>"):
        scores_of(model, tokenizer, [PLAIN, {"input": "x", "<ans>": {}}])


def test_an_example_with_a_non_finite_score_is_named(model, tokenizer):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.encoder.output_layernorm.weight[0] = float("inf")
    with pytest.raises(ModelError, match="f:0"):
        scores_of(broken, tokenizer, [PLAIN])


def test_the_summary_is_a_mean_over_tokens():
    summary = Summary()
    for score in (ExampleScore(2, -3.0, "a", True), ExampleScore(1, -3.0, "b", False), ExampleScore(3, -6.0)):
        summary.add(score)
    assert summary.to_dict() == {
        "examples": 3, "target_tokens": 6, "loss": 2.0, "perplexity": pytest.approx(math.exp(2)),
        "choices": 2, "correct": 1, "accuracy": 0.5,
    }  # fmt: skip


def test_without_choices_there_is_no_accuracy():
    summary = Summary()
    summary.add(ExampleScore(1, -2000.0))
    assert summary.to_dict() == {"examples": 1, "target_tokens": 1, "loss": 2000.0, "perplexity": None}
