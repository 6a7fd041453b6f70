"""The commands of docs/how-to/submit.md, one after the other."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import Laptop
from tests.paths import DOCS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PAGE = DOCS / "how-to" / "submit.md"


def block(language: str) -> str:
    """The first one in that language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_every_command_works(laptop: Laptop):
    folder, ours = laptop.folder, laptop.spec
    (folder / "models").mkdir()
    shutil.copytree(folder / "model", folder / "models" / "cpm-bee")
    shutil.copytree(folder / "raw", folder / "raw_data")
    assert (
        laptop.run("reformat", "--input", folder / "raw", "--output", folder / "bee_data", "--format", "ccpm").code == 0
    )
    spec = yaml.safe_load(block("yaml"))
    known = {*spec, *spec["train"], *spec["workers"], *spec["cluster"], *spec["storage"]}
    assert known >= {"image", "count", "namespace", "secret"}
    spec["train"] |= {"epochs": 1, "max_length": 256}
    # what is of this cluster
    spec |= {key: ours[key] for key in ("output", "image", "workers", "cluster", "storage")}
    (folder / "job.yaml").write_text(yaml.safe_dump(spec))
    script = block("bash").replace("-n ml", f"-n {laptop.namespace}")
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("<ans>") == 3
