"""Golden losses for every engine, layout and precision: those of the engine `torch` on a CPU in fp32.

`python -m tests.gpu.golden` computes them and writes `tests/golden/losses.json`.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from cpmbee_job.model.config import ModelConfig
from cpmbee_job.model.locate import fetch_model
from cpmbee_job.model.net.inputs import ModelInputs
from cpmbee_job.model.plan import Plan
from cpmbee_job.model.weights.model_folder import ModelFiles
from cpmbee_job.run.run import Run
from cpmbee_job.train.engine.build import build_engine
from cpmbee_job.train.engine.torch_engine import TorchEngine
from cpmbee_job.train.world import World
from tests.integration.jobs import make_job
from tests.integration.worlds import new_run
from tests.oracle import flatten_rows, random_rows

PLACE = Path(__file__).parents[1] / "golden" / "losses.json"
CPU = torch.device("cpu")
STEPS = 8
LEARNING_RATE = 1e-2
OPTION = "train.loss_scale=1024"  # low enough that fp16 does not overflow


def inputs_of(run: Run) -> ModelInputs:
    """Return random packed rows over the vocabulary of the run's model."""
    config = ModelConfig.from_file(fetch_model(run.spec.model).config)
    return ModelInputs.from_numpy(**flatten_rows(random_rows(np.random.default_rng(0), config.vocab_size, 3, 6)))


def engine(
    run: Run,
    device: torch.device,
    layout: str = "replicated",
    precision: str = "fp32",
    recompute_layers: int = 0,
    files: ModelFiles | None = None,
) -> TorchEngine:
    """Build the engine as a worker does, from the run's model or from `files`."""
    plan = Plan("bmtrain", layout, precision, recompute_layers)
    return build_engine(run, files or fetch_model(run.spec.model), World(0, 0, 1, device), plan)


def steps(engine: TorchEngine, inputs: ModelInputs, first: int = 1, last: int = STEPS) -> list[float]:
    there = inputs.prefetched(engine.device)
    return [engine.step(n, [there], LEARNING_RATE, lambda: False).loss for n in range(first, last + 1)]


def compute(run: Run) -> dict[str, object]:
    """Return the loss of each step, then that of an evaluation of the same packed rows."""
    one, inputs = engine(run, CPU), inputs_of(run)
    found = steps(one, inputs)
    evaluated = one.evaluate([inputs], lambda: False)
    assert evaluated is not None
    return {"steps": found, "evaluation": evaluated.loss}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(make_job(Path(folder)), "golden", OPTION)
        PLACE.write_text(json.dumps(compute(run), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
