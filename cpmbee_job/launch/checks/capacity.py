"""What a pod asks for, and what nodes and quotas have to give. Pure: objects of the API in, numbers and words out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from cpmbee_job.launch.checks.placement import refusal
from cpmbee_job.launch.checks.quantities import parse_quantity, show_quantity
from cpmbee_job.launch.kube.protocol import Object

Amounts = dict[str, Decimal]
"""By resource, like `cpu`, `memory`, `nvidia.com/gpu`."""

PRODUCT_LABEL = "nvidia.com/gpu.product"


def pod_amounts(pod_spec: Mapping[str, Any], kind: Literal["requests", "limits"] = "requests") -> Amounts:
    """What a pod's containers ask for together, as the scheduler counts: init steps run one after the other, before."""
    together = _sum(_amounts(container, kind) for container in pod_spec["containers"])
    for container in pod_spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":  # runs beside the others
            together = _sum([together, _amounts(container, kind)])
    for container in pod_spec.get("initContainers") or ():
        for resource, amount in _amounts(container, kind).items():
            together[resource] = max(together.get(resource, Decimal(0)), amount)
    return _sum([together, _parsed(pod_spec.get("overhead") or {})])


@dataclass
class NodeRoom:
    """A node, and what the pods on it have asked for."""

    node: Object
    used: Amounts = field(default_factory=dict)

    @property
    def allocatable(self) -> Amounts:
        return _parsed(self.node["status"].get("allocatable") or {})

    @property
    def free(self) -> Amounts:
        return {resource: amount - self.used.get(resource, Decimal(0)) for resource, amount in self.allocatable.items()}

    @property
    def product(self) -> str | None:
        """Of its GPUs."""
        label: str | None = (self.node["metadata"].get("labels") or {}).get(PRODUCT_LABEL)
        return label


def node_rooms(nodes: Iterable[Object], pods: Iterable[Object]) -> list[NodeRoom]:
    """The nodes with what is used of them; pods that have ended use nothing."""
    rooms = {node["metadata"]["name"]: NodeRoom(node) for node in nodes}
    for pod in pods:
        room = rooms.get(pod["spec"].get("nodeName", ""))
        if room is not None and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            room.used = _sum([room.used, pod_amounts(pod["spec"]), {"pods": Decimal(1)}])
    return list(rooms.values())


@dataclass(frozen=True)
class GpuCount:
    product: str
    nodes: int
    total: Decimal
    free: Decimal


def count_gpus(rooms: Sequence[NodeRoom], resource: str) -> list[GpuCount]:
    """GPUs by product, of nodes that have any."""
    counts = []
    for product in sorted({room.product or resource for room in rooms if room.allocatable.get(resource)}):
        those = [r for r in rooms if (r.product or resource) == product and r.allocatable.get(resource)]
        total = sum((room.allocatable[resource] for room in those), Decimal(0))
        counts.append(GpuCount(product, len(those), total, sum((r.free[resource] for r in those), Decimal(0))))
    return counts


@dataclass(frozen=True)
class Fit:
    """How many pods of a kind find room: on empty nodes, and now. `obstacles`: why nodes take none, in words."""

    ever: int
    now: int
    obstacles: tuple[str, ...]


def fit(rooms: Sequence[NodeRoom], pod_spec: Mapping[str, Any]) -> Fit:
    """Where a pod would find room."""
    request = {**pod_amounts(pod_spec), "pods": Decimal(1)}
    ever = now = 0
    reasons: Counter[str] = Counter()
    short: dict[str, list[Decimal]] = {}
    for room in rooms:
        reason = refusal(room.node, pod_spec)
        if reason is not None:
            reasons[reason] += 1
            continue
        ever += _times(room.allocatable, request)
        now += _times(room.free, request)
        for resource, amount in request.items():
            if room.allocatable.get(resource, Decimal(0)) < amount:
                short.setdefault(resource, []).append(room.allocatable.get(resource, Decimal(0)))
    words = [f"{nodes_in_words(count)} {reason}" for reason, count in reasons.most_common()]
    words += [
        f"{nodes_in_words(len(there))} of at most {show_quantity(resource, max(there))} {resource}, where a pod asks "
        f"for {show_quantity(resource, request[resource])}"
        for resource, there in short.items()
    ]
    return Fit(ever, now, tuple(words))


def quota_shortages(quota: Object, pod_spec: Mapping[str, Any], count: int) -> list[str]:
    """What `count` pods and their job ask for that the ResourceQuota no longer has, in words."""
    if not _counts(quota, pod_spec):
        return []
    wanted = _quota_names(pod_spec, count)
    status = quota.get("status") or {}
    hard, used = _parsed(status.get("hard") or {}), _parsed(status.get("used") or {})
    words = []
    for resource, amount in wanted.items():
        if resource in hard and amount > hard[resource] - used.get(resource, Decimal(0)):
            shown = [show_quantity(resource, n) for n in (amount, used.get(resource, Decimal(0)), hard[resource])]
            words.append(
                f"{resource}: the job asks for {shown[0]}, {shown[1]} of {shown[2]} are used"
                + (", so it never fits" if amount > hard[resource] else "")
            )
    return words


def _quota_names(pod_spec: Mapping[str, Any], count: int) -> Amounts:
    """The job's amounts under all names that a quota may have for them. The operator makes a Service for each pod."""
    each = Decimal(count)
    wanted = {"pods": each, "count/pods": each, "services": each, "count/services": each}
    wanted["count/pytorchjobs.kubeflow.org"] = Decimal(1)
    for resource, amount in pod_amounts(pod_spec).items():
        wanted[f"requests.{resource}"] = amount * each
        if resource in ("cpu", "memory", "ephemeral-storage"):
            wanted[resource] = amount * each
    for resource, amount in pod_amounts(pod_spec, "limits").items():
        wanted[f"limits.{resource}"] = amount * each
    return wanted


def _counts(quota: Object, pod_spec: Mapping[str, Any]) -> bool:
    """Whether the quota's scopes mean such a pod."""
    terminating, priority = "activeDeadlineSeconds" in pod_spec, pod_spec.get("priorityClassName")
    for scope in quota["spec"].get("scopes") or ():
        if scope == "BestEffort" or scope == ("NotTerminating" if terminating else "Terminating"):
            return False
    for term in (quota["spec"].get("scopeSelector") or {}).get("matchExpressions") or ():
        if term["scopeName"] == "PriorityClass":
            matches = {
                "In": priority in (term.get("values") or ()),
                "NotIn": priority not in (term.get("values") or ()),
                "Exists": priority is not None,
                "DoesNotExist": priority is None,
            }
            if not matches.get(term["operator"], True):
                return False
    return True


def _amounts(container: Mapping[str, Any], kind: str) -> Amounts:
    resources = container.get("resources") or {}
    # a limit without a request is a request too
    return _parsed({**((resources.get("limits") or {}) if kind == "requests" else {}), **(resources.get(kind) or {})})


def _parsed(quantities: Mapping[str, Any]) -> Amounts:
    return {resource: parse_quantity(quantity) for resource, quantity in quantities.items()}


def _sum(many: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for amounts in many:
        for resource, amount in amounts.items():
            total[resource] = total.get(resource, Decimal(0)) + amount
    return total


def _times(room: Amounts, request: Amounts) -> int:
    """How often the request fits."""
    return max(0, min(int(room.get(name, Decimal(0)) / amount) for name, amount in request.items() if amount > 0))


def nodes_in_words(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
