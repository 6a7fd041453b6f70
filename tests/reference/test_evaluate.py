"""Scores of single examples against those of the original code."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cpmbee_job.data.encode.encoder import encode_example
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.eval.evaluate import Evaluator
from cpmbee_job.model.lora import apply_delta, read_delta
from cpmbee_job.model.net.cpmbee import CpmBee
from cpmbee_job.model.weights.model_folder import find_model, load_model
from tests.conftest import needs_reference

pytestmark = needs_reference


def model_of(reference: Path, name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> CpmBee:
    folder = reference / "reference" / ("pruned" if name == "pruned" else "")
    model = load_model(find_model(folder), dtype, device)
    if name == "delta":
        apply_delta(model, read_delta(reference / "reference" / "delta.pt"))
    return model


def cases_of(reference: Path, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Examples with the original's scores, and the answers of each in the order that it shuffled them to."""
    lines = (reference / "reference" / "row_scores.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    for case in cases:
        orders = (
            itertools.permutations(case["data"]["<ans>"].items()) if isinstance(case["data"]["<ans>"], dict) else []
        )
        for order in orders:
            example = {**case["data"], "<ans>": dict(order)}
            encoded = encode_example(tokenizer, example)
            answer = [t for t in encoded.input_ids[encoded.context == 0].tolist() if t != tokenizer.bos_id]
            if answer == [t for t in case["targets"] if t != tokenizer.eos_id]:
                case["data"] = example
    return cases


@pytest.mark.parametrize("name", ["base", "delta", "pruned"])
@pytest.mark.parametrize("token_budget", [1, 4096])
def test_scores_are_the_originals(reference, name, token_budget):
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(reference / "model" / "vocab.txt")
    cases = cases_of(reference, tokenizer)
    evaluator = Evaluator(model_of(reference, name, torch.device("cpu")), tokenizer, token_budget)
    scores = list(evaluator.scores((str(n), case["data"]) for n, case in enumerate(cases)))
    assert [s.target_tokens for s in scores] == [c["target_tokens"] for c in cases]
    assert [s.logprob for s in scores] == pytest.approx([c[f"{name}_logprob"] for c in cases], abs=1e-4, rel=1e-6)
