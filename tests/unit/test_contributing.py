"""The worked examples of CONTRIBUTING.md, applied to a copy of the package and run there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.jobs import make_job
from tests.paths import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as all examples of the page change it."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "cpmbee_job", folder / "cpmbee_job", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for path, text in re.findall(
        r"^`(cpmbee_job/[\w/]+\.py)`:\n\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE
    ):
        assert not (folder / path).exists()
        (folder / path).write_text(text, encoding="utf-8")
    for diff in re.findall(r"^```diff\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        apply(diff, folder)
    return folder


def apply(diff: str, folder: Path) -> None:
    """Apply a diff. Its line numbers do not count: each hunk must match in exactly one place."""
    for path, hunks in re.findall(r"^--- .*\n\+\+\+ b/(.*)\n((?:@@.*\n|[ +-].*\n)*?)(?=--- |\Z)", diff, re.MULTILINE):
        text = (folder / path).read_text(encoding="utf-8")
        for hunk in re.split(r"^@@.*\n", hunks, flags=re.MULTILINE)[1:]:
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] in " -")
            assert text.count(before) == 1, f"{path} does not have once:\n{before}"
            text = text.replace(before, "".join(line[1:] for line in lines if line[0] in " +"))
        (folder / path).write_text(text, encoding="utf-8")


def run(copy: Path, *arguments: object, cwd: Path) -> str:
    """Run Python with the changed package; return its stdout and stderr."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_examples_pass_the_linters(copy: Path) -> None:
    run(copy, "-m", "ruff", "check", "--no-cache", "cpmbee_job", cwd=copy)
    run(copy, "-m", "ruff", "format", "--no-cache", "--check", "cpmbee_job", cwd=copy)


def test_the_new_command_counts_records(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"input": "a", "<ans>": "b"}\n' * 3)
    printed = run(copy, "-m", "cpmbee_job.cli", "data", "count", "--input", "train.jsonl", cwd=tmp_path)
    assert printed == "3 records\n"
    assert "count" in run(copy, "-m", "cpmbee_job.cli", "data", "--help", cwd=tmp_path)


def test_the_new_format_makes_examples(copy: Path, tmp_path: Path) -> None:
    record = {"user": "你好", "assistant": "你好！"}
    (tmp_path / "raw.jsonl").write_text(json.dumps(record) + "\n")
    run(copy, "-m", "cpmbee_job.cli", "reformat", "--input=raw.jsonl", "--output=out", "--format=chat", cwd=tmp_path)
    example = json.loads((tmp_path / "out" / "raw.jsonl").read_text(encoding="utf-8"))
    assert example == {"input": "用户：你好<sep>AI：", "<ans>": "你好！"}


def test_the_new_field_and_the_new_engine_train(copy: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path, rows=40)
    for settings in (["train.adam_beta2=0.95"], ["train.engine=sgd"]):
        overrides = [f"--set={setting}" for setting in (*settings, "train.epochs=1")]
        printed = run(copy, "-m", "cpmbee_job.cli", "local", job, "--processes=1", *overrides, cwd=tmp_path)
        assert "succeeded after" in printed
    assert "sgd in fp32" in printed
