"""A GPU computes what the original code computes in fp32 on a CPU (CPMBEE_REFERENCE)."""

import numpy as np
import pytest

from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.eval.evaluate import Evaluator
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.model.weights.model_folder import find_model
from cpmbee_job.train.engine.build import DTYPES
from tests.conftest import needs_reference
from tests.gpu.golden import engine
from tests.gpu.test_engines import LAYOUTS, TOLERANCES
from tests.integration.worlds import new_run
from tests.oracle import flatten_rows
from tests.reference.test_evaluate import cases_of, model_of

pytestmark = [pytest.mark.gpu, needs_reference]


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradient_of_a_delta_equal_the_originals(reference, job, device, layout, precision) -> None:
    folder = reference / "reference"
    expected, arrays = np.load(folder / "lora.npz"), np.load(folder / "packed_batches.npz")
    rows = {name[2:]: arrays[name] for name in arrays if name.startswith("0.")}
    run = new_run(job, f"{layout}-{precision}", f"lora.init_from={folder / 'delta.pt'}", "train.loss_scale=64")
    one = engine(run, device, layout, precision, files=find_model(folder))
    result = one.step(1, [ModelInputs.from_numpy(**flatten_rows(rows))], 0.0, lambda: False)
    assert result.loss == pytest.approx(expected["loss"].item(), rel=TOLERANCES[precision])
    gradients = [expected[name].ravel() for name in expected if name.startswith("grad.")]
    norm = np.linalg.norm(np.concatenate(gradients))
    assert result.grad_norm == pytest.approx(norm, rel=5 * TOLERANCES[precision])


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", ["base", "delta", "pruned"])
def test_scores_equal_the_originals(reference, device, name, precision) -> None:
    tokenizer = Tokenizer.from_file(reference / "model" / "vocab.txt")
    cases = cases_of(reference, tokenizer)
    evaluator = Evaluator(model_of(reference, name, device, DTYPES[precision]), tokenizer, 4096)
    scores = list(evaluator.scores((str(n), case["data"]) for n, case in enumerate(cases)))
    assert [score.target_tokens for score in scores] == [case["target_tokens"] for case in cases]
    expected = [case[f"{name}_logprob"] for case in cases]
    assert [score.logprob for score in scores] == pytest.approx(expected, rel=5 * TOLERANCES[precision])
