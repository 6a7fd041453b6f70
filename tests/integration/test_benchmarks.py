"""A part of `make bench` with small inputs: it runs, and baselines and our code agree. No time is asserted."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.measure import ROOT


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"BENCH_QUICK": "1"}
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_quick_benchmarks_run():
    done = bench("packing", "startup", "--json")
    assert done.returncode == 0, done.stderr
    figures = {figure["what"]: figure for figure in json.loads(done.stdout)["figures"]}
    # Targets other than times must be met on any machine.
    marked = [figure for figure in figures.values() if figure["mark"] is not None]
    assert len(marked) == 6
    assert [figure["what"] for figure in marked if not figure["reached"]] == []


def test_the_table_has_a_row_for_each_figure():
    done = bench("tokenizer")
    assert done.returncode == 0, done.stderr
    assert "greedy loop in Python" in done.stdout
    assert "HF tokenizers' WordPiece" in done.stdout


@pytest.mark.parametrize("arguments", [["tokeniser"], ["--write"], ["tokenizer", "--write"]])
def test_unknown_subjects_and_partial_records_are_usage_errors(arguments):
    done = bench(*arguments)
    assert done.returncode == 2
    assert "error: " in done.stderr
