"""The command line as a whole: light, and honest about mistakes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cpmbee_job.cli import app

HEAVY = ["torch", "boto3", "botocore", "kubernetes", "pyarrow", "numpy", "transformers", "opendelta"]


def run(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "cpmbee_job.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["local", "--help"], ["init", "a.yaml"], ["validate", "job.yaml"]])
def test_light_verbs_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "job.yaml").write_text("name: a\nmodel: s3://m/\ndata: {train: s3://d/}\noutput: s3://o/\n")
    program = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('HEAVY', [m for m in {HEAVY} if m in sys.modules]))\n"
        f"sys.argv = ['cpmbee-job', *{arguments}]\n"
        "from cpmbee_job.cli import main; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_validate_refuses_what_no_gpu_of_the_kind_can_hold(tmp_path: Path) -> None:
    sizes = {"vocab_size": 86583, "dim_model": 4096, "num_heads": 32, "dim_head": 128, "dim_ff": 10240}
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"num_layers": 48}))
    workers = "workers: {gpus: 1, gpu_product: Tesla-V100-SXM2-16GB}\n"
    (tmp_path / "job.yaml").write_text(f"name: a\nmodel: .\ndata: {{train: s3://d/}}\noutput: s3://o/\n{workers}")
    done = run("validate", "job.yaml", cwd=tmp_path)
    assert done.returncode == 3
    assert "workers.gpu_product: a step takes about" in done.stderr
    assert "14.7 of 16 GiB to use" in " ".join(done.stderr.split())


def test_what_init_writes_is_valid(tmp_path: Path) -> None:
    assert run("init", "my job.yaml", cwd=tmp_path).returncode == 0
    done = run("validate", "my job.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "name: my-job" in done.stdout


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("mine")
    assert run("init", cwd=tmp_path).returncode == 5
    assert (tmp_path / "job.yaml").read_text() == "mine"


def test_a_missing_spec_is_said_with_what_to_do(tmp_path: Path) -> None:
    done = run("validate", "nowhere.yaml", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith("error: nowhere.yaml: No such file")
    assert "hint" in done.stderr


def test_an_unknown_option_is_a_usage_error() -> None:
    done = run("validate", "--frobnicate", "x")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_early_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: a\nmodel: s3://m/\ndata: {train: s3://d/}\noutput: s3://o/\n")
    script = f"{sys.executable} -m cpmbee_job.cli validate --json job.yaml | true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "Traceback" not in done.stderr


def test_an_encoding_that_lacks_a_character_is_no_fault(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cpmbee_job.cli", "validate", "没有🙂.yaml"]
    environment = os.environ | {"PYTHONIOENCODING": "gbk"}
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 3
    assert done.stderr.decode("gbk").startswith("error: 没有\\U0001f642.yaml: No such file")


def test_every_verb_shows_an_example() -> None:
    def verbs(command: Any, path: str) -> Iterator[tuple[str, str]]:
        inner = getattr(command, "commands", {})
        for name, verb in inner.items():
            yield from verbs(verb, f"{path} {name}")
        if not inner:
            yield path, command.help

    for path, text in verbs(typer.main.get_command(app), "cpmbee-job"):
        assert f"Example: {path} " in text, path


def test_the_version_is_told() -> None:
    assert run("--version").stdout.startswith("cpmbee-job ")
