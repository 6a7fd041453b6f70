"""Names, labels and annotations of the objects that we create on a cluster."""

import re

from cpmbee_job.documents import digest

METRICS_PORT = 9464
METRICS_PORT_NAME = "metrics"
MANAGED_BY = {"app.kubernetes.io/managed-by": "cpmbee-job"}
"""Label of all our objects on a cluster."""
NAME_LABEL = "cpmbee-job/name"
RUN_LABEL = "cpmbee-job/run"
COMMAND_LABEL = "cpmbee-job/command"
"""Label of a Job and its pods: the command that they run. Pods of a PyTorchJob do not have it."""
URL_ANNOTATION = "cpmbee-job/url"
"""URL of the run of a PyTorchJob, or of the results of a Job."""
PREPARE_CONTAINER = "prepare"
TRAIN_CONTAINER = "pytorch"
"""The training operator requires this name."""


def job_name(name: str, run_id: str) -> str:
    """Return the name of a run's job: at most 51 characters, starting with a letter.

    With the operator's suffix `-worker-9999` it must be a valid name of a pod and a Service. An id that is too long or
    not a valid name is replaced by its digest; the labels contain name and id in full.
    """
    prefix = name if name[0].isalpha() else f"j{name}"
    suffix = run_id if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,22}[a-z0-9])?", run_id) else digest(run_id)[:12]
    return f"{prefix[: 50 - len(suffix)].rstrip('-')}-{suffix}"
