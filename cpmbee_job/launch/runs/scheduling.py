"""The scheduler's words about a pod that fits no node, taken apart and put in terms of the job spec."""

import re

from cpmbee_job.launch.kube.fields import condition, one_line, part, parts, text
from cpmbee_job.launch.kube.protocol import Object

_KEYS = {"cpu": "workers.cpu", "memory": "workers.memory", "ephemeral-storage": "workers.ephemeral"}
_PARTS = re.compile(r"(\d+) (.+?)(?=, \d+ |$)")
_TAINT = re.compile(r"had untolerated taint(?:\(s\))? \{(.*?)(?:: ?(.*?))?\}")


def why_unscheduled(pod: Object) -> str:
    """Like `no node takes it (0 of 3): 2 lack nvidia.com/gpu (8 asked for, workers.gpus), 1 has the taint ...`."""
    said = one_line(condition(pod, "PodScheduled"), "message")
    found = re.match(r"(\d+)/(\d+) nodes are available: (.*)", said)
    if not found:
        return f"no node takes it: {said}" if said else "no node takes it"
    # what follows tells that throwing out other pods would not help either
    words = re.split(r"\.? (?:preemption:|no new claims)|\.$", found[3])[0].rstrip(".")
    claim = re.search(r'persistentvolumeclaim "([^"]*)" not found', words)
    if claim:
        return f"no node takes it: there is no volume claim {claim[1]} in the namespace (cluster.cache_claim)"
    counted = _PARTS.findall(words)
    if not counted:
        return f"no node takes it: {words}"
    return f"no node takes it (0 of {found[2]}): {', '.join(_in_words(int(n), what, pod) for n, what in counted)}"


def _requested(pod: Object, resource: str) -> str:
    """What the training container asks for of it, "" where it says nothing."""
    for container in parts(pod, "spec", "containers"):
        for kind in ("requests", "limits"):
            if value := text(container, "resources", kind, resource):
                return value
    return ""


def _in_words(count: int, what: str, pod: Object) -> str:
    one = count == 1
    what = what.removeprefix("node(s) ")
    if what.startswith("Insufficient "):
        resource = what.removeprefix("Insufficient ")
        amount = _requested(pod, resource)
        key = _KEYS.get(resource, "workers.gpus" if "gpu" in resource else "workers.resources")
        return f"{count} {'lacks' if one else 'lack'} {resource} ({f'{amount} asked for, ' * bool(amount)}{key})"
    if taint := _TAINT.match(what):
        name = f"{taint[1]}={taint[2]}" if taint[2] else taint[1]
        return f"{count} {'has' if one else 'have'} the taint {name} (cluster.tolerations)"
    if what == "didn't match Pod's node affinity/selector":
        wanted = part(pod, "spec", "nodeSelector")
        labels = ", ".join(f"{key}={text(wanted, key)}" for key in wanted)
        if part(pod, "spec", "affinity", "nodeAffinity"):
            labels += f"{' and ' * bool(labels)}what cluster.affinity says"
        keys = ["workers.gpu_product"] * any("gpu.product" in key for key in wanted)
        keys += ["cluster.node_selector"] * any("gpu.product" not in key for key in wanted)
        words = f"{count} {'lacks' if one else 'lack'} {labels or 'the labels'}"
        return words + (f" ({', '.join(keys)})" if keys else "")
    if what == "were unschedulable":
        return f"{count} {'is' if one else 'are'} cordoned"
    if what == "Too many pods":
        return f"{count} {'has' if one else 'have'} as many pods as {'it' if one else 'they'} may"
    return f"{count} {what}"
