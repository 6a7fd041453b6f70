"""The contract between launcher and image: environment variables and commands, with a version number."""

import os
from pathlib import Path

STORAGE_ENV = "CPMBEE_STORAGE"
"""JSON of the `StorageSpec` (without secrets), for processes that get only the URL of a run."""
SPEC_ENV = "CPMBEE_SPEC"
"""The spec. The init step begins the run with it if the store has none, so a manifest is enough to start a run."""
POD_INDEX_ENV = "CPMBEE_POD_INDEX"
"""Index of the pod; each pod starts its share of the init step at another file."""
VERSION = 2
"""Version of this contract. A launcher and an image of different versions are incompatible."""
VERSION_ENV = "CPMBEE_CONTRACT"
"""`VERSION` of the launcher; the pods compare it with their own."""
LAUNCHER_ENV = "CPMBEE_LAUNCHER_VERSION"
"""Version of the launcher, for messages."""
IN_CLUSTER_ENV = "CPMBEE_IN_CLUSTER"
"""Set if the launcher is a pod of the cluster: it reaches the store at the same address as the jobs' pods."""
METRICS_PORT_ENV = "CPMBEE_METRICS_PORT"
"""Port on which the training container serves its metrics; empty or missing: it serves none."""
CPUS_ENV = "CPMBEE_CPUS"
"""CPU limit of the container; the kernel shows a container all CPUs of its node."""
CACHE_ENV = "CPMBEE_CACHE"
"""Folder for copies of models and data."""


def prepare_command(url: str) -> list[str]:
    """Return the command of the init step of the run at `url`, in a pod or on this machine."""
    return ["-m", "cpmbee_job.data", url]


def train_command(url: str) -> list[str]:
    """Return the command of the training container of the run at `url`, in a pod or on this machine."""
    return ["-m", "cpmbee_job.train", url]


def pod_name() -> str:
    """Return the name of the pod (outside a cluster, of the machine), for documents and log keys."""
    return os.environ.get("POD_NAME") or os.uname().nodename


def default_cache_dir() -> Path:
    """Return `$CPMBEE_CACHE`, else `cpmbee-job` in the user's cache folder."""
    if chosen := os.environ.get(CACHE_ENV):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpmbee-job"
