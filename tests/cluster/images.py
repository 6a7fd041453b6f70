"""`python -m tests.cluster.images`: both images, built from the Dockerfile, and an S3 server's, brought to the node.

No registry is needed: the base is made of Debian's packages, and the node gets the layers that it does not have. All of
it stays in the cache, so that a change of our own code costs one small layer.
"""

import ast
import fcntl
import hashlib
import json
import logging
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpmbee_job.store.embedded import server_program
from tests.cluster import machine
from tests.cluster.containers import import_layout, import_program
from tests.cluster.layout import CACHE, CONTAINERD_SOCKET, ClusterError
from tests.cluster.machine import run
from tests.paths import ROOT

BASE, PACKAGE = "localhost/cpmbee-job/base:dev", "localhost/cpmbee-job/package:dev"
LAUNCHER, TRAIN = "localhost/cpmbee-job/launcher:dev", "localhost/cpmbee-job/train:dev"
S3_SERVER = "localhost/cpmbee-job/seaweedfs:dev"
INPUTS = ["Dockerfile", "README.md", "LICENSE", "pyproject.toml", "locks", "cpmbee_job"]

FOLDER = CACHE / "images"
STORAGE = FOLDER / "storage"
"""buildah's, with the base and the layers of the last build: about 7 GB."""
LAYOUT = FOLDER / "layout"
"""The images as files, uncompressed, as the node gets them: about 6 GB."""
RUN = Path("/run/cpmbee-images")
BUILT = FOLDER / "built"
"""Digest of what the images in `LAYOUT` are made of."""
DISK_GIB = 20
"""What a first build needs, pip's downloads included."""

PACKAGES = {"buildah": "buildah", "skopeo": "skopeo", "runc": "runc", "debootstrap": "debootstrap"}
INDEX_SETTINGS = ("index-url", "extra-index-url", "trusted-host")
LIMITS = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
"""
"""buildah's own defaults are higher than what a container that this machine may be is allowed."""

log = logging.getLogger(__name__)


def build() -> None:
    """Make what is missing of both images, as files in `LAYOUT`."""
    with _alone():
        _build()


@contextmanager
def _alone() -> Iterator[None]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build() -> None:
    key = _inputs_digest()
    if BUILT.exists() and BUILT.read_text() == key:
        return
    machine.install_packages(PACKAGES)
    free = shutil.disk_usage(FOLDER).free / 2**30
    if not STORAGE.exists() and free < DISK_GIB:
        raise ClusterError(f"{FOLDER} has {free:.0f} GiB of free disk: the first build of the images needs {DISK_GIB}.")
    (FOLDER / "containers.conf").write_text(LIMITS)
    os.environ["CONTAINERS_CONF"] = str(FOLDER / "containers.conf")
    BUILT.unlink(missing_ok=True)
    if BASE not in _buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
        _make_base()
    with _secrets() as secrets:
        # The package's stage has a name too, or the clean-up below would take it away.
        for target, name in (("package", PACKAGE), ("launcher", LAUNCHER), ("train", TRAIN)):
            _build_target(target, name, secrets)
    _buildah("rm", "--all")  # what builds that were killed have left
    _buildah("rmi", "--prune")
    for name in (LAUNCHER, TRAIN):
        source = f"containers-storage:[overlay@{STORAGE}+{RUN}]{name}"
        log.info("Writing %s ...", name)
        run(
            *("skopeo", "copy", "--insecure-policy", "--quiet", "--dest-oci-accept-uncompressed-layers"),
            *(source, f"oci:{LAYOUT}:{name}"),
        )
    _remove_unused()
    if f" {STORAGE}/overlay " in Path("/proc/self/mounts").read_text():  # on itself: in the way of removing the cache
        run("umount", STORAGE / "overlay")
    BUILT.write_text(key)


def load() -> None:
    """Bring the images to the node of the cluster here."""
    if not CONTAINERD_SOCKET.exists():
        raise ClusterError("There is no cluster here (`make cluster`) to bring the images to.")
    import_layout(LAYOUT)
    import_program(S3_SERVER, server_program(), "/weed")


def _inputs_digest() -> str:
    files = [ROOT / name for name in INPUTS]
    files += [
        path for folder in files if folder.is_dir() for path in folder.rglob("*") if "__pycache__" not in path.parts
    ]
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.is_file()):
        digest.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _make_base() -> None:
    """Debian with its Python 3.11, in the place of the registry's image that the Dockerfile names."""
    log.info("Making a base image of Debian's packages: a minute ...")
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        root = Path(scratch) / "root"
        run("debootstrap", "--variant=minbase", "--include=python3,ca-certificates", "bookworm", root)
        for leftovers in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(root / leftovers)
        container = _buildah("from", "scratch").strip()
        _buildah("add", "--quiet", container, root, "/")
        _buildah("commit", "--quiet", "--rm", container, BASE)


def _build_target(target: str, name: str, secrets: list[str]) -> None:
    log.info("Building %s ...", name)
    started = time.monotonic()
    values = {"BASE_IMAGE": BASE, "VERSION": _version(), "REVISION": _revision()}
    arguments = [f"--build-arg={key}={value}" for key, value in values.items()]
    _buildah(
        *("bud", "--quiet", "--layers", "--network=host", f"--target={target}", f"--tag={name}"),
        *(*arguments, *secrets, ROOT),
    )
    log.info("It took %.0f s.", time.monotonic() - started)


@contextmanager
def _secrets() -> Iterator[list[str]]:
    """How this machine reaches its package index: what it trusts, and pip's configuration."""
    certificates = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    options = [f"--secret=id=ca,src={certificates}"] if certificates and Path(certificates).is_file() else []
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    settings = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)
    lines = [
        f"{name} = {ast.literal_eval(value)}\n"
        for key, value in settings.items()
        if (name := key.rpartition(".")[2]) in INDEX_SETTINGS
    ]
    with tempfile.NamedTemporaryFile("w", prefix="cpmbee-pip-") as file:  # only its owner can read it
        file.writelines(["[global]\n", *lines])
        file.flush()
        yield [*options, f"--secret=id=pip_conf,src={file.name}"]


def _remove_unused() -> None:
    """Delete earlier builds, which have lost their names, from `LAYOUT`."""
    blobs = LAYOUT / "blobs" / "sha256"
    index = json.loads((LAYOUT / "index.json").read_text())
    index["manifests"] = [image for image in index["manifests"] if "annotations" in image]
    (LAYOUT / "index.json").write_text(json.dumps(index))
    used = set()
    for image in index["manifests"]:
        manifest = json.loads((blobs / image["digest"].removeprefix("sha256:")).read_text())
        used |= {image["digest"], manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])}
    for path in blobs.iterdir():
        if f"sha256:{path.name}" not in used:
            path.unlink()


def _version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def _revision() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _buildah(*arguments: str | Path) -> str:
    return run("buildah", "--root", STORAGE, "--runroot", RUN, "--storage-driver", "overlay", *arguments)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with _alone():
            _build()
            load()
    except ClusterError as error:
        log.error("%s", error)
        return 1
    sys.stdout.write(f"{LAUNCHER}\n{TRAIN}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
