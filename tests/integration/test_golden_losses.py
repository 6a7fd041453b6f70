"""The golden losses for GPUs equal those of a CPU."""

import json
from pathlib import Path

import pytest

from tests.gpu.golden import OPTION, PLACE, compute
from tests.integration.jobs import make_job
from tests.integration.worlds import new_run


def test_a_cpu_still_gives_the_golden_losses(tmp_path: Path) -> None:
    """After an intended change of training, run `python -m tests.gpu.golden`."""
    golden = json.loads(PLACE.read_text(encoding="utf-8"))
    found = compute(new_run(make_job(tmp_path), "golden", OPTION))
    assert found["steps"] == pytest.approx(golden["steps"], rel=1e-5)
    assert found["evaluation"] == pytest.approx(golden["evaluation"], rel=1e-5)
