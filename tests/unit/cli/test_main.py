"""The command line as a whole: it starts fast, explains itself, and reports errors."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cpmbee_job.cli import app
from tests.cli_runner import run_cli
from tests.unit.cli.test_interface import describe

COMMAND = [sys.executable, "-m", "cpmbee_job.cli"]
HEAVY = {"boto3", "botocore", "kubernetes", "numpy", "opendelta", "pyarrow", "torch", "transformers"}
NOT_FOR_HELP = HEAVY | {"yaml", "cpmbee_job.spec"}
CPU_SECONDS = 0.6
SPEC = """
name: weather
image: example/train:1
model: s3://models/bee/
data: {train: s3://data/train.jsonl}
output: s3://runs/
workers: {count: 2, gpus: 1}
"""
PROGRAM = """
import json, resource, sys
from cpmbee_job.cli import main
try:
    main()
except SystemExit as end:
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {"code": end.code or 0, "modules": sorted(sys.modules), "cpu": used.ru_utime + used.ru_stime}
    json.dump(found, sys.stderr)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a job.yaml."""
    (tmp_path / "job.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(*arguments: str) -> dict[str, Any]:
    """Exit code, imported modules and CPU seconds of a command in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stderr.splitlines()[-1]))


def commands() -> Iterator[tuple[str, Any]]:
    """Each command with its path, such as `model merge`."""

    def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
        yield path, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, f"{path} {name}")

    yield from walk(typer.main.get_command(app), "cpmbee-job")


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], NOT_FOR_HELP),
        (["submit", "--help"], NOT_FOR_HELP),
        (["--version"], NOT_FOR_HELP),
        (["init", "new.yaml"], NOT_FOR_HELP),
        (["validate", "job.yaml"], HEAVY),
        (["render", "job.yaml"], HEAVY),
    ],
)
def test_light_commands_import_no_heavy_package(here: Path, arguments: list[str], unwanted: set[str]) -> None:
    found = measured(*arguments)
    assert found["code"] == 0
    assert unwanted & set(found["modules"]) == set()


def test_help_takes_little_cpu_time() -> None:
    best = min(measured("--help")["cpu"] for _ in range(3))  # other processes on the machine add to it
    assert best < CPU_SECONDS


def test_a_command_is_explained_in_one_short_line_then_in_full() -> None:
    for path, command in commands():
        first, *paragraphs = command.help.split("\n\n")
        assert len(first) <= 60 or path == "cpmbee-job", path
        if not hasattr(command, "commands"):
            assert paragraphs[-1].startswith(f"Example: {path} "), path


def test_each_option_is_explained_and_each_value_has_a_name() -> None:
    for path, command in commands():
        for parameter in command.params:
            where = f"{path} {parameter.opts}"
            assert parameter.help, where
            assert getattr(parameter, "is_flag", False) or parameter.metavar or "|" in describe(parameter), where


def test_help_fits_80_columns_without_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for path, _ in commands():
        text = re.sub(r"\x1b\[[0-9;]*m", "", run_cli(*path.split()[1:], "--help").out)
        assert max(map(len, text.splitlines())) <= 80, path
        assert not {"<str>", "<bool>", "<path>", "TEXT", "…"} & set(text.split()), path


def test_validate_rejects_a_model_that_does_not_fit_into_the_gpu(here: Path) -> None:
    sizes = {"vocab_size": 86583, "dim_model": 4096, "num_heads": 32, "dim_head": 128, "dim_ff": 10240}
    (here / "config.json").write_text(json.dumps(sizes | {"num_layers": 48}))
    workers = "workers: {gpus: 1, gpu_product: Tesla-V100-SXM2-16GB}\n"
    (here / "job.yaml").write_text(f"name: a\nmodel: .\ndata: {{train: s3://d/}}\noutput: s3://o/\n{workers}")
    done = run_cli("validate", "job.yaml")
    assert done.code == 3
    assert "workers.gpu_product: a step requires about" in done.err
    assert "14.7 of 16 GiB are usable" in " ".join(done.err.split())


def test_init_writes_a_valid_spec(here: Path) -> None:
    assert run_cli("init", "my job.yaml").code == 0
    done = run_cli("validate", "my job.yaml")
    assert done.code == 0, done.err
    assert "name: my-job" in done.out


def test_init_overwrites_nothing(here: Path) -> None:
    assert run_cli("init").code == 5
    assert (here / "job.yaml").read_text() == SPEC


def test_a_missing_spec_is_reported_with_a_hint(here: Path) -> None:
    done = run_cli("validate", "nowhere.yaml")
    assert done.code == 3
    assert done.err.startswith("error: nowhere.yaml: No such file")
    assert "hint" in done.err


@pytest.mark.parametrize(
    ("arguments", "message", "command"),
    [
        (["validate", "--frobnicate", "x"], "No such option: --frobnicate", "cpmbee-job validate"),
        (["validate"], "Missing argument 'JOB.yaml'", "cpmbee-job validate"),
        (["frobnicate"], "No such command 'frobnicate'", "cpmbee-job"),
    ],
)
def test_an_invalid_command_line_is_an_error_in_one_line(arguments: list[str], message: str, command: str) -> None:
    done = run_cli(*arguments)
    assert done.code == 2
    assert done.err.startswith(f"error: {message}")
    assert f"hint: see `{command} --help`" in done.err


def test_a_reader_that_closes_the_pipe_causes_no_traceback(here: Path) -> None:
    script = f"{sys.executable} -m cpmbee_job.cli validate --json job.yaml | true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_characters_that_the_encoding_does_not_have_are_escaped(here: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "gbk"}
    done = subprocess.run([*COMMAND, "validate", "没有🙂.yaml"], capture_output=True, env=environment, check=False)
    assert done.returncode == 3
    assert done.stderr.decode("gbk").startswith("error: 没有\\U0001f642.yaml: No such file")


def test_the_version_is_printed() -> None:
    assert run_cli("--version").out.startswith("cpmbee-job ")
