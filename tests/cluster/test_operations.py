"""The commands of docs/how-to/schedule.md, one after the other."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import Laptop
from tests.cluster.kubectl import kubectl
from tests.cluster.releases import Release, launcher_image
from tests.helm import CHART, program
from tests.paths import DOCS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

PAGE = DOCS / "how-to" / "schedule.md"


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_every_command_works(laptop: Laptop):
    release = Release(laptop)
    release.upload_inputs()
    release.change_rows(seed=3)
    namespace = f"{laptop.namespace}-ops"
    (laptop.folder / "helm").symlink_to(CHART.parent)
    (laptop.folder / "values.yaml").write_text(yaml.safe_dump(values(laptop)))

    def run(script: str) -> str:
        for word, ours in ((r"-n ml\b", f"-n {namespace}"), (r"namespace ml\b", f"namespace {namespace}")):
            script = re.sub(word, ours, script)
        script = script.replace("s3://training/runs/", laptop.spec["output"])
        path = f"{Path(program()).parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        endpoint = laptop.spec["storage"]["launcher_endpoint_url"]
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=laptop.folder,
            env={**os.environ, "PATH": path, "AWS_ENDPOINT_URL": endpoint},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    try:
        make, install, found, first, second, third, upgrade, monitor, collect, uninstall, clean = blocks("bash")
        run(make)
        assert run(install).count("Succeeded") == 2
        said = run(found)
        assert "cpmbee-doctor-ccpm" in said
        assert re.search(r"helm-test/[\w-]+: succeeded", said)
        said = run(first)
        assert re.search(r"ccpm/\w+: succeeded", said)
        assert len(re.findall(r"^ccpm/\w+ .*succeeded", said, flags=re.MULTILINE)) == 1
        assert (laptop.folder / "ccpm-delta" / "result.json").is_file()
        (watch,) = re.findall(r"`(cpmbee-job [^`]* -n ml[^`]*)`", PAGE.read_text(encoding="utf-8"))  # within a sentence
        assert "succeeded" in run(watch)
        run(second)
        release.change_rows(seed=4)
        assert len(re.findall(r"^ccpm/\w+ .*succeeded", run(third), flags=re.MULTILINE)) == 2
        assert "Rollback to 1" in run(upgrade)
        said = run(monitor)
        for name in ("podmonitor", "prometheusrule", "configmap/cpmbee-dashboard"):
            assert name in said
        assert run(collect) == ""  # all is of today
        assert len(re.findall(r"^ccpm/\w+ .*succeeded", run(uninstall), flags=re.MULTILINE)) == 2
        run(clean)
    finally:
        kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")


def values(laptop: Laptop) -> Any:
    """The page's, with what is of this cluster."""
    (block,) = blocks("yaml")
    document = yaml.safe_load(block)
    ours = laptop.spec
    document["image"] = launcher_image()
    defaults, (spec,) = document["defaults"], (job["spec"] for job in document["jobs"].values())
    assert defaults.keys() >= {"image", "output", "workers", "storage"}
    defaults |= {key: ours[key] for key in ("image", "output")}
    defaults["workers"] = ours["workers"] | {"count": 1}
    defaults["storage"] |= {"endpoint_url": ours["storage"]["endpoint_url"]}
    spec |= {"model": ours["model"], "data": ours["data"]}
    spec["train"] |= {"epochs": 1, "max_length": 256}
    return document
