"""`make chaos` with five faults; the printed seed reproduces them."""

import json
import os
import subprocess
import sys

import pytest

from tests.chaos.plan import KINDS, draw
from tests.paths import ROOT


@pytest.mark.timeout(600)
def test_five_faults_cost_nothing():
    seed = os.environ.get("CPMBEE_SEED", "")
    environment = os.environ | {"CHAOS_FAULTS": "5", "CHAOS_SEED": seed}
    command = [sys.executable, "-m", "tests.chaos", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert (verdict["planned"], verdict["struck"], verdict["problems"]) == (5, 5, [])
    assert (verdict["twice"], verdict["never"], verdict["delta_difference"]) == (0, 0, 0.0)
    assert verdict["attempts"] > 1


@pytest.mark.parametrize("count", [1, 5, 60])
def test_a_seed_determines_the_plan(count):
    plan = draw("a seed", count)
    assert plan == draw("a seed", count)
    assert plan != draw("another", count)
    assert [fault.number for fault in plan.faults] == list(range(1, count + 1))
    assert count < 60 or {fault.kind for fault in plan.faults} == set(KINDS)
