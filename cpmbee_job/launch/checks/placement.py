"""Whether a node may take a pod at all, as the scheduler decides it: readiness, selectors, affinity, taints."""

from collections.abc import Mapping
from typing import Any

from cpmbee_job.launch.kube.protocol import Object


def refusal(node: Object, pod_spec: Mapping[str, Any]) -> str | None:
    """Why the node takes no such pod, whatever room it has ("is not ready"); None where it may."""
    if not any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions") or ()):
        return "not ready"
    labels = node["metadata"].get("labels") or {}
    for key, value in (pod_spec.get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            return f"without the label {key}={value}"
    required = ((pod_spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if required is not None and not any(_matches(term, node) for term in required.get("nodeSelectorTerms") or ()):
        return "without what the required node affinity asks for"
    tolerations = pod_spec.get("tolerations") or ()
    for taint in node["spec"].get("taints") or ():
        if taint["effect"] != "PreferNoSchedule" and not any(_tolerates(t, taint) for t in tolerations):
            if taint["key"] == "node.kubernetes.io/unschedulable":
                return "cordoned"
            value = f"={taint['value']}" if taint.get("value") else ""
            return f"with the taint {taint['key']}{value}:{taint['effect']}, which is not tolerated"
    return None


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return bool(toleration.get("key") == taint["key"] and (toleration.get("value") or "") == (taint.get("value") or ""))


def _matches(term: Mapping[str, Any], node: Object) -> bool:
    labels = node["metadata"].get("labels") or {}
    fields = {"metadata.name": node["metadata"]["name"]}
    return all(_holds(e, labels) for e in term.get("matchExpressions") or ()) and all(
        _holds(e, fields) for e in term.get("matchFields") or ()
    )


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), list(expression.get("values") or ())
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            try:
                return int(value or "") > int(values[0]) if operator == "Gt" else int(value or "") < int(values[0])
            except (ValueError, IndexError):
                return False
    return False
