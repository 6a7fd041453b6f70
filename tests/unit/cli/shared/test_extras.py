"""The command line with only the core dependencies, as `locks/launcher.txt` installs them."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.paths import ROOT


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with only the packages of the launcher's lock file, and ours."""
    packages = tmp_path_factory.mktemp("core")
    names = re.findall(r"^([\w.-]+)==", (ROOT / "locks" / "launcher.txt").read_text(), re.MULTILINE)
    for name in [*names, "cpmbee-job"]:
        distribution = metadata.distribution(name)
        for top in {Path(str(file)).parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    return packages


def run(core: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-S", "-m", "cpmbee_job.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": f"{core}{os.pathsep}{ROOT}"}
    return subprocess.run(command, capture_output=True, text=True, cwd=core.parent, env=environment, check=False)


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text("name: a\nmodel: m\ndata: {train: d}\noutput: runs\n")
    return str(path)


def test_light_commands_work(core: Path, spec: str) -> None:
    assert run(core, "--help").returncode == 0
    assert run(core, "validate", spec).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "--model=m", "--data=d"],
        ["predict", "--model=m", "--input=d"],
        ["model", "convert", "--model=m", "--out=o"],
        ["data", "check", "--vocab=v", "--input=d"],
        ["preprocess", "--input=d", "--output_path=o", "--output_name=n"],
    ],
)
def test_other_commands_report_what_to_install(core: Path, arguments: list[str]) -> None:
    done = run(core, *arguments)
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("error: not installed: ")
    assert "[train]" in done.stderr


def test_local_without_torch_starts_no_run(core: Path, spec: str) -> None:
    done = run(core, "local", spec)
    assert done.returncode == 4, done.stderr
    assert "torch" in done.stderr.splitlines()[0]
    assert not (Path(spec).parent / "runs").exists()
