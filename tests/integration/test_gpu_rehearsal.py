"""`make test-gpu` and `make bench-gpu` run on the CPU as a rehearsal, and skip or refuse without a GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import needs_reference
from tests.gpu.environment import requirements, unmet
from tests.paths import ROOT

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def python(*arguments: object, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | env, check=False)


def test_the_gpu_tests_pass_their_rehearsal() -> None:
    done = python("-m", "pytest", "tests/gpu", "-m", "gpu", "-rs", CPMBEE_TEST_DEVICE="cpu")
    assert done.returncode == 0, done.stdout
    skipped = set(re.findall(r"(?m)^SKIPPED .*: (.+)$", done.stdout))
    assert skipped - {needs_reference.kwargs["reason"]} == {
        "only the allocator of a GPU counts bytes",
        "torch reports synchronization only on a GPU",
    }


@without_gpu
def test_without_a_gpu_the_gpu_tests_are_skipped_with_a_reason() -> None:
    done = python("-m", "pytest", "tests/gpu", "-m", "gpu", "-rs")
    assert done.returncode == 0
    assert "torch finds no CUDA GPU here" in done.stdout
    assert "passed" not in done.stdout


def test_the_gpu_benchmark_can_be_rehearsed(tmp_path: Path) -> None:
    done = python("-m", "benchmarks.gpu", "--rehearse", "--steps", 1, "--out", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "result.json").read_text())
    assert document["rehearsal"] is True
    assert {result["setting"]["name"] for result in document["results"]} == {"ours", "dense"}
    assert all(result["tokens_per_second"] > 0 for result in document["results"])


def test_flex_attention_computes_what_the_groups_do(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = python("-m", "benchmarks.gpu", "--rehearse", "--attention", "--steps", 1, "--out", out)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())["results"]
    assert [result["form"] for result in results] == 2 * ["groups", "flex"]
    assert all(result["difference"] < 1e-5 for result in results)


@without_gpu
def test_the_gpu_benchmark_is_refused_without_a_gpu() -> None:
    done = python("-m", "benchmarks.gpu")
    assert done.returncode == 2
    assert "torch finds no CUDA GPU here" in done.stderr


def test_missing_requirements_of_a_python_are_found() -> None:
    assert unmet(requirements()) == set()
    assert unmet([*requirements(), "transformers==1.0", "not-there>=1", "torch==1.0"]) == {"transformers", "not-there"}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("main()", "has no torch"),
        ("pip('install', ['not-there'])", "dev.txt does not have not-there"),
        ("build_bmtrain()", "CUDA's compiler nvcc is neither in /nowhere/bin (CUDA_HOME) nor on PATH"),
    ],
)
def test_an_impossible_environment_is_refused_with_a_message(code: str, message: str) -> None:
    """`-I -S` starts Python without any package."""
    code = f"import sys; sys.path.append({str(ROOT / 'tests/gpu')!r}); import environment; environment.{code}"
    done = python("-I", "-S", "-c", code, CUDA_HOME="/nowhere", PATH="/nowhere")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
