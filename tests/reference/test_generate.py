"""Beam search against the answers of the original code."""

import json
from collections import defaultdict

import pytest
import torch

from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.eval.generate import BeamOptions, Generator
from cpmbee_job.eval.questions import ask
from cpmbee_job.model.weights.model_folder import find_model, load_model
from tests.conftest import needs_reference

pytestmark = needs_reference


@pytest.mark.parametrize("batch_size", [1, 5])
def test_answers_are_the_originals(reference, batch_size):
    torch.set_num_threads(1)
    model = load_model(find_model(reference / "reference"), torch.float32, torch.device("cpu"))
    tokenizer = Tokenizer.from_file(reference / "model" / "vocab.txt")
    cases = defaultdict(list)
    for line in (reference / "reference" / "generate.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        cases[case["beam_size"], case["max_length"], case["repetition_penalty"]].append(case)
    for options, group in cases.items():
        generator = Generator(model, tokenizer, BeamOptions(*options))
        for at in range(0, len(group), batch_size):
            batch = group[at : at + batch_size]
            answered = generator.answer([ask(tokenizer, case["data"]) for case in batch])
            assert answered == [{**case["data"], "<ans>": case["answer"]} for case in batch]
