"""The Kubernetes permissions that our commands require, for the Role in k8s/ and the access reviews of `doctor`."""

from collections.abc import Iterable
from typing import Any, NamedTuple


class Permission(NamedTuple):
    """RBAC verbs that some of our commands use on a resource."""

    commands: tuple[str, ...]
    group: str
    resource: str
    """RBAC's name; with the subresource, such as `pods/log`."""
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
"""Required in the job's namespace."""

OPTIONAL_PERMISSIONS = (
    Permission(("doctor", "validate --server"), "", "resourcequotas", ("list",)),
    Permission(("doctor",), "", "namespaces", ("get",)),
    Permission(("doctor",), "", "configmaps", ("get",)),
    Permission(("doctor",), "", "persistentvolumeclaims", ("get",)),
    Permission(("doctor",), "kueue.x-k8s.io", "localqueues", ("get",)),
)
"""Also in the namespace; without them, `doctor` skips checks. It also reads the metadata of Secrets, which no Role of
ours allows, since RBAC cannot separate metadata from values."""

CLUSTER_PERMISSIONS = (
    Permission(("status", "wait"), "", "nodes", ("get",)),
    Permission(("doctor",), "", "nodes", ("list",)),
    Permission(("doctor",), "", "pods", ("list",)),
    Permission(("doctor",), "apps", "deployments", ("list",)),
)
"""For an optional ClusterRole. They explain why a node is not ready, and let `doctor` check nodes, GPUs and the
operator."""


def rules(permissions: Iterable[Permission]) -> list[dict[str, Any]]:
    """Return the rules of a Role with these permissions, one for each resource."""
    verbs: dict[tuple[str, str], list[str]] = {}
    for permission in permissions:
        known = verbs.setdefault((permission.group, permission.resource), [])
        known.extend(verb for verb in permission.verbs if verb not in known)
    return [
        {"apiGroups": [group], "resources": [resource], "verbs": allowed}
        for (group, resource), allowed in verbs.items()
    ]
