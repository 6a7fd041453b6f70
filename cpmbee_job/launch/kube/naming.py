"""Names, labels and annotations of what we create on a cluster."""

import re

from cpmbee_job.documents import digest

METRICS_PORT = 9464
"""The one in a manifest."""
METRICS_PORT_NAME = "metrics"
MANAGED_BY = {"app.kubernetes.io/managed-by": "cpmbee-job"}
"""Label of every object of ours on a cluster."""
NAME_LABEL = "cpmbee-job/name"
RUN_LABEL = "cpmbee-job/run"
COMMAND_LABEL = "cpmbee-job/command"
"""Of a Job and its pods: which verb they do; pods that train have none."""
URL_ANNOTATION = "cpmbee-job/url"
"""Where the run of a PyTorchJob, or what a Job makes, lies in the store."""
PREPARE_CONTAINER = "prepare"
TRAIN_CONTAINER = "pytorch"
"""The operator asks for this name."""


def job_name(name: str, run_id: str) -> str:
    """Name of the run's PyTorchJob. With the operator's `-worker-9999` behind it, it is a pod's and a Service's name,
    so it starts with a letter and has at most 51 characters; the labels have the names in full. An id that does not
    fit into such a name is there as its digest."""
    prefix = name if name[0].isalpha() else f"j{name}"
    suffix = run_id if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,22}[a-z0-9])?", run_id) else digest(run_id)[:12]
    return f"{prefix[: 50 - len(suffix)].rstrip('-')}-{suffix}"
