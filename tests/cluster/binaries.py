"""The programs that are built from Go modules, kept between clusters."""

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.layout import BIN, CACHE, GO, ClusterError
from tests.cluster.machine import run

MODULES = {
    "pause": (".", ["pause"]),
    "helm": ("tool", ["helm"]),
    "kubernetes": (
        "tool",
        ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"],
    ),
    "training-operator": ("tool", ["training-operator.v1"]),
    "coredns": ("tool", ["coredns"]),
    "definitions": ("", []),
}
"""Folder of the module: what `go build` is told to build there, and what comes out; nothing of what has only files."""

OPERATOR_MANIFESTS = CACHE / "training-operator.yaml"
"""The operator's own, for a cluster that has nothing else of Kubeflow."""
DEFINITIONS = CACHE / "definitions.yaml"
"""Of kinds of other operators, which are not here: what the API server checks manifests by."""
DEFINITION_FILES = {
    "github.com/prometheus-operator/prometheus-operator": [
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ],
    "github.com/argoproj/argo-workflows/v3": ["manifests/base/crds/full/argoproj.io_cronworkflows.yaml"],
}

log = logging.getLogger(__name__)


def build(modules: Iterable[str] = MODULES) -> None:
    """Build what is not in the cache, or was built from another go.mod."""
    BIN.mkdir(parents=True, exist_ok=True)
    for module in modules:
        with _alone(module):
            _build(module)


@contextmanager
def _alone(module: str) -> Iterator[None]:
    """Hold the lock of this module; other modules can be built concurrently."""
    with (CACHE / f"{module}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(module: str) -> None:
    target, programs = MODULES[module]
    stamp = CACHE / f"{module}.built"
    digest = _digest(GO / module)
    if all((BIN / program).exists() for program in programs) and stamp.exists() and stamp.read_text() == digest:
        return
    if not shutil.which("go"):
        raise ClusterError("`go` is not in PATH: install Go to build Kubernetes (see docs/how-to/test-cluster.md)")
    log.info("Building %s ...", ", ".join(programs) or module)
    started = time.monotonic()
    flags = " ".join(["-s -w", *(f"-X {name}={value}" for name, value in _versions(module).items())])
    if target:
        _go(module, "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", f"{BIN}/", target)
    if module == "training-operator":
        source = _required(module, "github.com/kubeflow/training-operator", "Dir")
        OPERATOR_MANIFESTS.write_text(run(BIN / "kubectl", "kustomize", f"{source}/manifests/overlays/standalone"))
    if module == "definitions":
        _go(module, "mod", "download")
        sources = {Path(_required(module, path, "Dir")): files for path, files in DEFINITION_FILES.items()}
        texts = [(source / file).read_text() for source, files in sources.items() for file in files]
        DEFINITIONS.write_text("\n---\n".join(texts))
    stamp.write_text(digest)
    log.info("  built in %.0f s", time.monotonic() - started)


def _versions(module: str) -> dict[str, str]:
    """Return the version variables to link into a program."""
    if module == "kubernetes":
        return {"k8s.io/component-base/version.gitVersion": _required(module, "k8s.io/kubernetes", "Version")}
    if module == "helm":  # for which Kubernetes it renders a chart where it asks none
        helm, minor = "helm.sh/helm/v3", _required(module, "k8s.io/client-go", "Version").split(".")[1]
        packages = (f"{helm}/pkg/chartutil", f"{helm}/pkg/lint/rules")
        majors = dict.fromkeys((f"{package}.k8sVersionMajor" for package in packages), "1")
        minors = dict.fromkeys((f"{package}.k8sVersionMinor" for package in packages), minor)
        return {f"{helm}/internal/version.version": _required(module, helm, "Version"), **majors, **minors}
    return {}


def _required(module: str, path: str, what: str) -> str:
    """The version or the folder of a module that ours requires."""
    return _go(module, "list", "-m", "-f", f"{{{{.{what}}}}}", path)


def _go(module: str, *arguments: str) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0"}
    done = subprocess.run(
        ["go", *arguments], cwd=GO / module, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ClusterError(f"`go {arguments[0]}` failed in {GO / module}: {done.stderr.strip()}")
    return done.stdout.strip()


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
