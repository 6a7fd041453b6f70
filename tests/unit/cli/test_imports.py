"""The commands that need nothing but the spec load nothing else: they start at once, wherever they are installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"boto3", "botocore", "kubernetes", "numpy", "pyarrow", "torch", "transformers"}
SPEC = """
name: weather
image: example/train:1
model: s3://models/bee/
data: {train: s3://data/train.jsonl}
output: s3://runs/
workers: {count: 2, gpus: 1}
"""
PROGRAM = """
import json, sys
from cpmbee_job.cli import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code or 0
json.dump({"code": code, "modules": sorted({name.partition(".")[0] for name in sys.modules})}, sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["submit", "--help"], ["render", "job.yaml"]])
def test_light_commands_load_no_heavy_package(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(SPEC)
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    told = json.loads(run.stderr)
    assert told["code"] == 0
    assert run.stdout
    assert "typer" in told["modules"]
    assert HEAVY.isdisjoint(told["modules"])
