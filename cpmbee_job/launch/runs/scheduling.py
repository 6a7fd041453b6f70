"""Explain the scheduler's message about an unschedulable pod in terms of the job spec."""

import re

from cpmbee_job.launch.kube.fields import condition, one_line, part, parts, text
from cpmbee_job.launch.kube.protocol import GPU_PRODUCT_LABEL, Object

_KEYS = {"cpu": "workers.cpu", "memory": "workers.memory", "ephemeral-storage": "workers.ephemeral"}
_COUNTED = re.compile(r"(\d+) (.+?)(?=, \d+ |$)")
_TAINT = re.compile(r"had untolerated taint(?:\(s\))? \{(.*?)(?:: ?(.*?))?\}")
_OTHERS = {"were unschedulable": "cordoned", "Too many pods": "with too many pods"}


def why_unscheduled(pod: Object) -> str:
    """Return text like `Unschedulable (0 of 3 nodes fit): 2 with insufficient cpu (8 requested, workers.cpu), ...`."""
    message = one_line(condition(pod, "PodScheduled"), "message")
    found = re.match(r"(\d+)/(\d+) nodes are available: (.*)", message)
    if not found:
        return f"Unschedulable: {message}" if message else "Unschedulable"
    # The rest of the message is about preemption, which would not help either.
    reasons = re.split(r"\.? (?:preemption:|no new claims)|\.$", found[3])[0].rstrip(".")
    claim = re.search(r'persistentvolumeclaim "([^"]*)" not found', reasons)
    if claim:
        return f"Unschedulable: PersistentVolumeClaim {claim[1]} not found in the namespace (cluster.cache_claim)"
    counted = _COUNTED.findall(reasons)
    if not counted:
        return f"Unschedulable: {reasons}"
    shown = ", ".join(f"{count} {_explain(reason.removeprefix('node(s) '), pod)}" for count, reason in counted)
    return f"Unschedulable (0 of {found[2]} nodes fit): {shown}"


def _explain(reason: str, pod: Object) -> str:
    """Rephrase one reason of the scheduler so that it follows a number of nodes."""
    if reason.startswith("Insufficient "):
        resource = reason.removeprefix("Insufficient ")
        amount = _requested(pod, resource)
        key = _KEYS.get(resource, "workers.gpus" if "gpu" in resource else "workers.resources")
        return f"with insufficient {resource} ({f'{amount} requested, ' if amount else ''}{key})"
    if taint := _TAINT.match(reason):
        return f"with untolerated taint {'='.join(filter(None, taint.groups()))} (cluster.tolerations)"
    if reason == "didn't match Pod's node affinity/selector":
        selector = part(pod, "spec", "nodeSelector")
        wanted = [f"{label}={text(selector, label)}" for label in selector]
        keys = ["workers.gpu_product"] * (GPU_PRODUCT_LABEL in selector)
        keys += ["cluster.node_selector"] * any(label != GPU_PRODUCT_LABEL for label in selector)
        if part(pod, "spec", "affinity", "nodeAffinity"):
            wanted, keys = [*wanted, "the node affinity"], [*keys, "cluster.affinity"]
        return f"not matching {', '.join(wanted) or 'the node selector'}" + (f" ({', '.join(keys)})" if keys else "")
    return _OTHERS.get(reason, reason)


def _requested(pod: Object, resource: str) -> str:
    """Return the amount that the pod's first container with one requests, "" if none does."""
    for container in parts(pod, "spec", "containers"):
        for kind in ("requests", "limits"):
            if amount := text(container, "resources", kind, resource):
                return amount
    return ""
