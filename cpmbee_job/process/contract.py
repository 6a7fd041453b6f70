"""What a launcher and an image agree on: environment variables and commands, by a version number."""

import os

STORAGE_ENV = "CPMBEE_STORAGE"
"""Environment variable with the JSON of `StorageSpec` (no secrets in it), for processes that get only a run's URL."""
SPEC_ENV = "CPMBEE_SPEC"
"""What the init step begins the run with where the store has none: a manifest alone is enough to start it."""
POD_INDEX_ENV = "CPMBEE_POD_INDEX"
"""The pod's index; each pod starts its share of the init step elsewhere."""
VERSION = 2
"""Of what this file agrees on. Launcher and image with different ones don't work together."""
VERSION_ENV = "CPMBEE_CONTRACT"
"""`VERSION` of the launcher, for the pods to compare with their own."""
LAUNCHER_ENV = "CPMBEE_LAUNCHER_VERSION"
"""Version of the launcher, for words."""
IN_CLUSTER_ENV = "CPMBEE_IN_CLUSTER"
"""Set where the launcher is a pod of the cluster: it reaches the store as the jobs' pods do."""
METRICS_PORT_ENV = "CPMBEE_METRICS_PORT"
"""The port on which the training container serves its metrics; nowhere where it is empty or missing."""
CPUS_ENV = "CPMBEE_CPUS"
"""The container's limit of CPUs: the kernel shows a container all of its node's."""


def prepare_command(url: str) -> list[str]:
    """The init step of the run at `url`, in a pod and on this machine alike."""
    return ["-m", "cpmbee_job.data", url]


def train_command(url: str) -> list[str]:
    """The training container's entrypoint, likewise."""
    return ["-m", "cpmbee_job.train", url]


def pod_name() -> str:
    """Name of the pod (of the machine, outside a cluster), for records and log keys."""
    return os.environ.get("POD_NAME") or os.uname().nodename
