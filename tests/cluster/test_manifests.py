"""Every reviewed manifest, as a real API server sees it: the CRD and the operator's webhook (strict), and its pod under
the "restricted" standard. Nothing is made but a namespace with a Role in it."""

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.kubectl import kubectl
from tests.paths import ROOT

MANIFESTS = sorted([*(ROOT / "tests" / "golden").glob("*/pytorchjob.yaml"), *(ROOT / "k8s").rglob("pytorchjob.yaml")])
INFERENCES = sorted((ROOT / "tests" / "golden").glob("*/evaluate.yaml"))
FOLDERS = ["k8s/base", "k8s/cluster-view", "k8s/example", "k8s/overlays/dev", "k8s/overlays/gpu"]

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """One with the labels of k8s/base, and what pods may name."""
    (ours,) = yaml.safe_load_all((ROOT / "k8s/base/namespace.yaml").read_text())
    name = ours["metadata"]["name"] = f"manifests-{uuid.uuid4().hex[:8]}"
    kubectl("create", "-f", "-", stdin=ours)
    try:
        kubectl("create", "serviceaccount", "trainer", "-n", name)
        kubectl("create", "serviceaccount", "cpmbee-train", "-n", name)
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def dry_run(manifest: Any, namespace: str, *options: str) -> None:
    manifest["metadata"]["namespace"] = namespace
    kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", *options, stdin=manifest)


def pod_of(template: Any) -> Any:
    template["spec"].pop("priorityClassName", None)  # the cluster need not have it
    return {**template, "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a-pod", **template["metadata"]}}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.name)
def test_the_operator_accepts_the_job(path: Path, namespace: str) -> None:
    dry_run(yaml.safe_load(path.read_text()), namespace)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.name)
def test_its_pod_is_valid_and_restricted(path: Path, namespace: str) -> None:
    template = yaml.safe_load(path.read_text())["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    template["metadata"]["labels"]["training.kubeflow.org/replica-index"] = "0"
    template["spec"]["restartPolicy"] = "OnFailure"
    dry_run(pod_of(template), namespace)


@pytest.mark.parametrize("path", INFERENCES, ids=lambda path: path.parent.name)
def test_an_inference_is_a_job_with_a_restricted_pod(path: Path, namespace: str) -> None:
    job = yaml.safe_load(path.read_text())
    dry_run(job, namespace)
    dry_run(pod_of(job["spec"]["template"]), namespace)


def test_argo_accepts_the_argo_recipe(namespace: str) -> None:
    dry_run(yaml.safe_load((ROOT / "docs/how-to/ci/argo.yaml").read_text()), namespace)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_cluster_accepts_the_kustomize_output(folder: str, namespace: str) -> None:
    made = list(yaml.safe_load_all(kubectl("kustomize", str(ROOT / folder))))
    for manifest in made:
        if "namespace" in manifest["metadata"]:
            dry_run(manifest, namespace)
        else:
            kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=manifest)


def test_the_role_allows_submitting_in_the_namespace_only(namespace: str) -> None:
    for name in ("role.yaml", "role-binding.yaml"):
        kubectl("create", "-n", namespace, "-f", str(ROOT / "k8s/base" / name))
    user = ("--as=somebody", "--as-group=cpmbee-job-users")
    dry_run(yaml.safe_load((ROOT / "k8s/example/pytorchjob.yaml").read_text()), namespace, *user)
    assert kubectl("auth", "can-i", "get", "pods/log", "-n", namespace, *user) == "yes\n"
    dry_run(yaml.safe_load((ROOT / "tests/golden/minimal/evaluate.yaml").read_text()), namespace, *user)
    elsewhere = ["kubectl", "auth", "can-i", "create", "pytorchjobs.kubeflow.org", "-n", "default", *user]
    assert subprocess.run(elsewhere, capture_output=True, text=True, check=False).stdout == "no\n"
