"""Show the scheduler's message about an unschedulable pod with the keys of the job spec that it is about."""

import re

from cpmbee_job.launch.kube.fields import condition, object_at, objects_at, one_line, text_at
from cpmbee_job.launch.kube.protocol import GPU_PRODUCT_LABEL, Object

_KEYS = {"cpu": "workers.cpu", "memory": "workers.memory", "ephemeral-storage": "workers.ephemeral"}


def why_unscheduled(pod: Object) -> str:
    """Return text like `Unschedulable: 0/3 nodes are available: 3 Insufficient cpu (8 requested, workers.cpu)`."""
    message = one_line(condition(pod, "PodScheduled"), "message")
    # The rest of the message is about preemption, which would not help either.
    message = re.split(r"\.? (?:preemption:|no new claims)|\.$", message)[0]
    if claim := re.search(r'persistentvolumeclaim "[^"]*" not found', message):
        return f"Unschedulable: {claim[0]} (cluster.cache_claim)"
    message = re.sub(
        r"(?<=\d )(Insufficient .+?|node\(s\) .+?)(?=, \d+ |$)", lambda found: _explain(found[0], pod), message
    )
    return f"Unschedulable: {message}" if message else "Unschedulable"


def _explain(reason: str, pod: Object) -> str:
    """Append what the pod requests, and the keys of the spec, to one reason of the scheduler."""
    details = []
    if resource := reason.removeprefix("Insufficient ") if reason.startswith("Insufficient ") else "":
        containers = objects_at(pod, "spec", "containers")
        amounts = (text_at(one, "resources", kind, resource) for one in containers for kind in ("requests", "limits"))
        details += [f"{amount} requested" for amount in amounts if amount][:1]
        details.append(_KEYS.get(resource, "workers.gpus" if "gpu" in resource else "workers.resources"))
    elif "untolerated taint" in reason:
        details.append("cluster.tolerations")
    elif "node affinity/selector" in reason:
        selector = object_at(pod, "spec", "nodeSelector")
        details += [f"{label}={text_at(selector, label)}" for label in selector]
        details += ["workers.gpu_product"] * (GPU_PRODUCT_LABEL in selector)
        details += ["cluster.node_selector"] * any(label != GPU_PRODUCT_LABEL for label in selector)
        details += ["cluster.affinity"] * bool(object_at(pod, "spec", "affinity", "nodeAffinity"))
    return f"{reason} ({', '.join(details)})" if details else reason
