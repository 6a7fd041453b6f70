"""The engine `bmtrain`: BMTrain as it is installed, and its own Python code with a sharded base over processes of this
machine (`tests.bmtrain_on_cpu`). No GPU takes part.
"""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.jobs import losses, make_job, metrics
from tests.integration.test_deterministic import delta
from tests.integration.worlds import Fault, RankServer, new_run

OPTIONS = ("train.early_stop_patience=0", "train.checkpoint_interval=1000")
STEPS = 12


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


def test_the_real_bmtrain_is_imported_beside_torch_and_leaves_its_nccl_alone() -> None:
    code = "import torch, bmtrain; print(bmtrain.CheckpointBlock.__module__, torch.cuda.nccl.version()[0] >= 2)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["bmtrain.block_layer", "True"], done.stderr


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_sharded_base_trains_bit_identically(job: Path, server: RankServer, size: int) -> None:
    """Over 3 ranks a step's 8 rows are not the same number for all, so one goes through the model with padding."""
    whole, shares = (new_run(job, f"{kind}-{size}", *OPTIONS) for kind in ("whole", "shares"))
    assert set(server.start(whole, size).wait()) == {0}
    assert set(server.start(shares, size, sharded=True).wait()) == {0}
    assert losses(Path(shares.url)) == losses(Path(whole.url))
    assert [line["loss"] for line in metrics(Path(shares.url), "eval")] == [
        line["loss"] for line in metrics(Path(whole.url), "eval")
    ]
    assert delta(Path(shares.url), "LAST") == delta(Path(whole.url), "LAST")


@pytest.mark.parametrize("first_is_sharded", [True, False])
def test_a_run_resumes_in_the_other_layout_with_identical_results(
    job: Path, server: RankServer, first_is_sharded: bool
) -> None:
    undisturbed, moved = (new_run(job, f"{name}-{first_is_sharded}", *OPTIONS) for name in ("undisturbed", "moved"))
    assert set(server.start(undisturbed, 2).wait()) == {0}
    stop = Fault(0, "step", 5, "before", signal.SIGTERM)
    assert set(server.start(moved, 2, stop, sharded=first_is_sharded).wait()) == {0}
    assert set(server.start(moved, 2, sharded=not first_is_sharded).wait()) == {0}
    assert [line["attempt"] for line in metrics(Path(moved.url))] == [1] * 5 + [2] * (STEPS - 5)
    assert losses(Path(moved.url)) == losses(Path(undisturbed.url))
    assert delta(Path(moved.url), "LAST") == delta(Path(undisturbed.url), "LAST")


def test_bmtrain_without_a_gpu_is_refused_for_good(job: Path, server: RankServer) -> None:
    run = new_run(job, "no-gpu", "train.engine=bmtrain")
    assert set(server.start(run, 2).wait()) == {3}
    result = run.result()
    assert result is not None
    assert (result["state"], result["reason"].partition("\n")[0]) == (
        "failed",
        "train.engine: bmtrain requires a GPU, and there is none",
    )
