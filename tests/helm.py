"""helm, and what it makes of the chart."""

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import binaries
from tests.cluster.layout import BIN, ClusterError
from tests.paths import CHART

VALUES = sorted(CHART.glob("ci/*-values.yaml"))
SPEC_FOLDER = "/etc/cpmbee-job/spec"
"""Where a launcher's pod has its `job.yaml`."""

Manifest = dict[str, Any]


@functools.cache
def program() -> str:
    """Built once from the Go module proxy; the test is skipped where that can't be."""
    try:
        binaries.build(["helm"])
    except ClusterError as error:
        pytest.skip(f"helm can't be built here: {error}")
    return str(BIN / "helm")


def helm(*arguments: str, values: Any = None) -> "subprocess.CompletedProcess[str]":
    """Runs it with these values."""
    options = [] if values is None else ["--values=-"]
    text = None if values is None else json.dumps(values)
    return subprocess.run([program(), *arguments, *options], input=text, capture_output=True, text=True, check=False)


def template(values: Any, *options: str, release: str = "rel", chart: Path = CHART) -> list[Manifest]:
    """What a release in the namespace `team` would install, tests included."""
    done = helm("template", release, str(chart), "--namespace=team", *options, values=values)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def only(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = of_kind(manifests, kind)
    return found


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Pods and templates of pods, by the name of the object."""
    paths = {
        "Pod": (),
        "Job": ("spec", "template"),
        "CronJob": ("spec", "jobTemplate", "spec", "template"),
        "Deployment": ("spec", "template"),
    }
    found = {}
    for manifest in manifests:
        if (path := paths.get(manifest["kind"])) is not None:
            pod = manifest
            for key in path:
                pod = pod[key]
            found[manifest["metadata"]["name"]] = pod
    return found


def job_specs(manifests: list[Manifest]) -> dict[str, str]:
    """The text of the job spec in each ConfigMap."""
    maps = of_kind(manifests, "ConfigMap")
    return {one["metadata"]["name"]: one["data"]["job.yaml"] for one in maps if "job.yaml" in one["data"]}
