"""Run helm, and read the objects that it renders from the chart."""

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
"""Path of `job.yaml` in a launcher pod."""

Manifest = dict[str, Any]


@functools.cache
def program() -> str:
    """Build helm once from the Go module proxy; skip the test if that is impossible."""
    try:
        binaries.build(["helm"])
    except ClusterError as error:
        pytest.skip(f"helm can't be built here: {error}")
    return str(BIN / "helm")


def helm(*arguments: str, values: Any = None) -> "subprocess.CompletedProcess[str]":
    """Run helm with these values."""
    options = [] if values is None else ["--values=-"]
    text = None if values is None else json.dumps(values)
    return subprocess.run([program(), *arguments, *options], input=text, capture_output=True, text=True, check=False)


def template(values: Any, *options: str, release: str = "rel", chart: Path = CHART) -> list[Manifest]:
    """Return the objects of a release in the namespace `team`, including tests."""
    done = helm("template", release, str(chart), "--namespace=team", *options, values=values)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def only(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = of_kind(manifests, kind)
    return found


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return pods and pod templates by the name of their object."""
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
    """Return the text of the job spec in each ConfigMap."""
    maps = of_kind(manifests, "ConfigMap")
    return {one["metadata"]["name"]: one["data"]["job.yaml"] for one in maps if "job.yaml" in one["data"]}
