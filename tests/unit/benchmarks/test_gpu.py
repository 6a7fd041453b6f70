"""The parts of the GPU benchmark that also run on a CPU."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.gpu import TINY, dense_step, our_step, random_model
from tests.oracle import flatten_rows, random_rows

CPU = torch.device("cpu")
CONFIG = replace(TINY, vocab_size=50)
ROWS = random_rows(np.random.default_rng(0), 50, 2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_both_formulations_take_the_same_steps_in_any_precision(dtype: torch.dtype) -> None:
    case = SimpleNamespace(dense=ROWS, ours=SimpleNamespace(**flatten_rows(ROWS)))
    ours = our_step(random_model(CONFIG, dtype, CPU), case, CPU, recompute_layers=1)
    dense = dense_step(random_model(CONFIG, dtype, CPU), case)
    pairs = [(ours(), dense()) for _ in range(3)]
    close = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    for own, baseline in pairs:
        assert own == pytest.approx(baseline, rel=close)
    assert pairs[-1][0] < pairs[0][0] or dtype == torch.bfloat16


def test_weights_are_created_in_their_dtype() -> None:
    model = random_model(CONFIG, torch.float16, CPU)
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.float16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32
