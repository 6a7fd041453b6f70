"""Compare what a pod requests with what nodes and quotas have. Pure: takes objects of the API.

Follows a few of the scheduler's rules: node readiness, node selector, taints, and the sum of requests. Affinity and
topology are left to the scheduler; `status` shows its message.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from cpmbee_job.launch.kube.fields import is_true, name_of, object_at, objects_at, text_at
from cpmbee_job.launch.kube.protocol import GPU_PRODUCT_LABEL, Object
from cpmbee_job.launch.kube.quantities import parse_quantity, show_quantity
from cpmbee_job.spec.cluster import RESOURCE_KEYS

Amounts = dict[str, Decimal]
"""By resource, like `cpu`, `memory`, `nvidia.com/gpu`."""
ZERO = Decimal(0)


def pod_amounts(pod_spec: Object, kind: Literal["requests", "limits"] = "requests") -> Amounts:
    """Return what a pod requests, as the scheduler counts it: init containers run before the others, one by one."""
    init = objects_at(pod_spec, "initContainers")
    sidecars = [container for container in init if container.get("restartPolicy") == "Always"]
    total = _sum(_container_amounts(container, kind) for container in [*objects_at(pod_spec, "containers"), *sidecars])
    for container in init:
        for resource, amount in _container_amounts(container, kind).items():
            total[resource] = max(total.get(resource, ZERO), amount)
    return _sum([total, _parse(object_at(pod_spec, "overhead"))])


@dataclass
class NodeRoom:
    """A node, what its pods may request together, and what of that is free."""

    node: Object
    allocatable: Amounts
    free: Amounts


def node_rooms(nodes: Iterable[Object], pods: Iterable[Object]) -> list[NodeRoom]:
    """Return the nodes with what their pods leave; pods that have ended use nothing."""
    rooms = {}
    for node in nodes:
        allocatable = _parse(object_at(node, "status", "allocatable"))
        rooms[name_of(node)] = NodeRoom(node, allocatable, dict(allocatable))
    for pod in pods:
        room = rooms.get(text_at(pod, "spec", "nodeName"))
        if room is not None and text_at(pod, "status", "phase") not in ("Succeeded", "Failed"):
            used = {**pod_amounts(pod["spec"]), "pods": Decimal(1)}
            room.free = {resource: amount - used.get(resource, ZERO) for resource, amount in room.free.items()}
    return list(rooms.values())


@dataclass
class GpuCount:
    product: str
    nodes: int = 0
    total: Decimal = ZERO
    free: Decimal = ZERO


def count_gpus(rooms: Sequence[NodeRoom], resource: str) -> list[GpuCount]:
    """Count the GPUs by product, on the nodes that have any."""
    counts: dict[str, GpuCount] = {}
    for room in rooms:
        if total := room.allocatable.get(resource):
            product = text_at(room.node, "metadata", "labels", GPU_PRODUCT_LABEL) or resource
            count = counts.setdefault(product, GpuCount(product))
            count.nodes += 1
            count.total += total
            count.free += room.free[resource]
    return [count for _, count in sorted(counts.items())]


@dataclass(frozen=True)
class Fit:
    """How many pods of a kind fit: if the nodes were empty, and now. `obstacles`: why nodes cannot run any."""

    empty: int
    now: int
    obstacles: tuple[str, ...]


def fit(rooms: Sequence[NodeRoom], pod_spec: Object) -> Fit:
    """Count how many pods with this spec fit on the nodes."""
    request = {**pod_amounts(pod_spec), "pods": Decimal(1)}
    empty = now = 0
    reasons: Counter[str] = Counter()
    short: dict[str, list[Decimal]] = {}
    for room in rooms:
        if (reason := obstacle(room.node, pod_spec)) is not None:
            reasons[reason] += 1
            continue
        empty += _times(room.allocatable, request)
        now += _times(room.free, request)
        for resource, amount in request.items():
            if (there := room.allocatable.get(resource, ZERO)) < amount:
                short.setdefault(resource, []).append(there)
    obstacles = [f"{count_nodes(count)} {reason}" for reason, count in reasons.most_common()]
    for resource, amounts in short.items():
        most, wanted = show_quantity(resource, max(amounts)), show_quantity(resource, request[resource])
        obstacles.append(f"{count_nodes(len(amounts))} with at most {most} {resource}, a pod requests {wanted}")
    return Fit(empty, now, tuple(obstacles))


def obstacle(node: Object, pod_spec: Object) -> str | None:
    """Return why the node cannot run the pod however much room it has, like `not ready`; None if it can."""
    if not is_true(node, "Ready"):
        return "not ready"
    for label, value in object_at(pod_spec, "nodeSelector").items():
        if object_at(node, "metadata", "labels").get(label) != value:
            return f"without label {label}={value}"
    for taint in objects_at(node, "spec", "taints"):
        key, value, effect = (text_at(taint, name) for name in ("key", "value", "effect"))
        is_tolerated = any(_tolerates(one, taint) for one in objects_at(pod_spec, "tolerations"))
        if effect != "PreferNoSchedule" and not is_tolerated:
            if key == "node.kubernetes.io/unschedulable":
                return "cordoned"
            return f"with untolerated taint {key}{f'={value}' if value else ''}:{effect}"
    return None


def quota_shortages(quota: Object, pod_spec: Object, count: int) -> list[str]:
    """Return what `count` pods and their job request in excess of the ResourceQuota."""
    if not _in_scope(quota, pod_spec):
        return []
    hard, used = _parse(object_at(quota, "status", "hard")), _parse(object_at(quota, "status", "used"))
    shortages = []
    for resource, amount in _quota_amounts(pod_spec, count).items():
        if resource in hard and amount > hard[resource] - used.get(resource, ZERO):
            shown = [show_quantity(resource, n) for n in (amount, used.get(resource, ZERO), hard[resource])]
            never = ", so it can never fit" if amount > hard[resource] else ""
            shortages.append(f"{resource}: the job requests {shown[0]}, {shown[1]} of {shown[2]} are used{never}")
    return shortages


def count_nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _quota_amounts(pod_spec: Object, count: int) -> Amounts:
    """Return the job's amounts under all names of a quota. The operator creates a Service for each pod."""
    each = Decimal(count)
    amounts = {"pods": each, "count/pods": each, "services": each, "count/services": each}
    amounts["count/pytorchjobs.kubeflow.org"] = Decimal(1)
    for resource, amount in pod_amounts(pod_spec).items():
        amounts[f"requests.{resource}"] = amount * each
        if resource in RESOURCE_KEYS:
            amounts[resource] = amount * each
    for resource, amount in pod_amounts(pod_spec, "limits").items():
        amounts[f"limits.{resource}"] = amount * each
    return amounts


def _in_scope(quota: Object, pod_spec: Object) -> bool:
    """Return whether the quota's scopes include such a pod."""
    other = "NotTerminating" if "activeDeadlineSeconds" in pod_spec else "Terminating"
    if {"BestEffort", other} & set(object_at(quota, "spec").get("scopes") or ()):
        return False
    priority = pod_spec.get("priorityClassName")
    for term in objects_at(quota, "spec", "scopeSelector", "matchExpressions"):
        if term["scopeName"] == "PriorityClass":
            named, has_one = priority in (term.get("values") or ()), priority is not None
            matches = {"In": named, "NotIn": not named, "Exists": has_one, "DoesNotExist": not has_one}
            if not matches.get(term["operator"], True):
                return False
    return True


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return all(text_at(toleration, name) == text_at(taint, name) for name in ("key", "value"))


def _container_amounts(container: Object, kind: Literal["requests", "limits"]) -> Amounts:
    limits = object_at(container, "resources", "limits")
    if kind == "limits":
        return _parse(limits)
    return _parse({**limits, **object_at(container, "resources", "requests")})  # a limit alone is a request too


def _parse(quantities: Mapping[str, Any]) -> Amounts:
    return {resource: parse_quantity(quantity) for resource, quantity in quantities.items()}


def _sum(many: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for amounts in many:
        for resource, amount in amounts.items():
            total[resource] = total.get(resource, ZERO) + amount
    return total


def _times(room: Amounts, request: Amounts) -> int:
    """Return how often the request fits into the room."""
    return max(0, min(int(room.get(name, ZERO) / amount) for name, amount in request.items() if amount > 0))
