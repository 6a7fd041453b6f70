"""What the verbs ask of the Kubernetes API. The Role in k8s/ and the access reviews of `doctor` are made from this."""

from collections.abc import Iterable
from typing import Any, NamedTuple


class Permission(NamedTuple):
    """Something that verbs of ours do with a kind of object."""

    commands: tuple[str, ...]
    group: str
    resource: str
    """As RBAC names it; with a subresource like `pods/log`."""
    verbs: tuple[str, ...]


INFERENCE = ("evaluate --on-cluster", "predict --on-cluster")

PERMISSIONS = (
    Permission(
        ("submit", "status", "wait", "logs", "cancel", "resume", "fetch", "promote", "compare"),
        "kubeflow.org",
        "pytorchjobs",
        ("get",),
    ),
    Permission(
        ("list", "status", "wait", "logs", "cancel", "resume", "fetch", "promote", "compare"),
        "kubeflow.org",
        "pytorchjobs",
        ("list",),
    ),
    Permission(("submit", "resume", "validate --server"), "kubeflow.org", "pytorchjobs", ("create",)),
    Permission(("cancel", "resume", "--cancel-on-signal"), "kubeflow.org", "pytorchjobs", ("delete",)),
    Permission(INFERENCE, "batch", "jobs", ("get", "create", "delete")),
    Permission(("status", "wait", "logs", "cancel", "resume", *INFERENCE), "", "pods", ("list",)),
    Permission(("logs", *INFERENCE), "", "pods", ("get", "watch")),
    Permission(("logs", *INFERENCE), "", "pods/log", ("get",)),
    Permission(("validate --server",), "", "pods", ("create",)),
    Permission(("status", "wait", *INFERENCE), "", "events", ("list",)),
    Permission(("status", "wait"), "kueue.x-k8s.io", "workloads", ("list",)),
)
"""In the job's namespace. Without one of them, its verbs don't work as they should."""

OPTIONAL_PERMISSIONS = (
    Permission(("doctor", "validate --server"), "", "resourcequotas", ("list",)),
    Permission(("doctor",), "", "namespaces", ("get",)),
    Permission(("doctor",), "", "configmaps", ("get",)),
    Permission(("doctor",), "", "persistentvolumeclaims", ("get",)),
    Permission(("doctor",), "kueue.x-k8s.io", "localqueues", ("get",)),
)
"""In the namespace too, but `doctor` goes without where it must. It also looks for the metadata of Secrets; no Role of
ours allows that, since RBAC can't tell metadata from values."""

CLUSTER_PERMISSIONS = (
    Permission(("status", "wait"), "", "nodes", ("get",)),
    Permission(("doctor",), "", "nodes", ("list",)),
    Permission(("doctor",), "", "pods", ("list",)),
    Permission(("doctor",), "apps", "deployments", ("list",)),
)
"""In the whole cluster, for a ClusterRole that nobody must have: why a node is silent, what `doctor` tells of nodes,
GPUs and the operator."""


def rules(permissions: Iterable[Permission]) -> list[dict[str, Any]]:
    """The rules of a Role that allows these, one for a resource."""
    verbs: dict[tuple[str, str], list[str]] = {}
    for permission in permissions:
        known = verbs.setdefault((permission.group, permission.resource), [])
        known.extend(verb for verb in permission.verbs if verb not in known)
    return [
        {"apiGroups": [group], "resources": [resource], "verbs": allowed}
        for (group, resource), allowed in verbs.items()
    ]
