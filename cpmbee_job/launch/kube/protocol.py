"""The operations that the launcher needs from a Kubernetes cluster. Objects are the API's own JSON."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, Protocol

from cpmbee_job.errors import NotFoundError

Object = dict[str, Any]
Change = Literal["ADDED", "MODIFIED", "DELETED"]

PYTORCHJOBS = "apis/kubeflow.org/v1/pytorchjobs"
JOBS = "apis/batch/v1/jobs"
PODS = "api/v1/pods"
EVENTS = "api/v1/events"
NODES = "api/v1/nodes"
QUOTAS = "api/v1/resourcequotas"
ACCESS_REVIEWS = "apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
DEPLOYMENTS = "apis/apps/v1/deployments"
WORKLOADS = "apis/kueue.x-k8s.io/v1beta1/workloads"
LOCAL_QUEUES = "apis/kueue.x-k8s.io/v1beta1/localqueues"
NAMESPACES = "api/v1/namespaces"
SECRETS = "api/v1/secrets"
CONFIG_MAPS = "api/v1/configmaps"
CLAIMS = "api/v1/persistentvolumeclaims"
KUBEFLOW_VERSIONS = "apis/kubeflow.org"
KUEUE_VERSIONS = "apis/kueue.x-k8s.io"
"""API discovery: each version of the group is an object that lists the `resources` it serves. Needs no permission."""

INDEX_LABEL = "training.kubeflow.org/replica-index"
"""Set by the training operator on pods."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
"""Read by Kueue on jobs."""
GPU_PRODUCT_LABEL = "nvidia.com/gpu.product"
"""Set by NVIDIA's GPU feature discovery on nodes."""

CLUSTER_WIDE = {NODES, NAMESPACES, ACCESS_REVIEWS, KUBEFLOW_VERSIONS, KUEUE_VERSIONS}
"""Kinds that are not namespaced."""


def ignore_warning(_text: str) -> None:
    """Drop the warning."""


class Cluster(Protocol):
    """One namespace of a cluster. A kind of object is named by its API path, such as `PODS`.

    Every method raises `ClusterError` if the API denies the request (401, 403), `UnreachableError` if it does not
    answer after several tries, and `NotFoundError` for an unknown object or kind.
    """

    @property
    def namespace(self) -> str:
        """The namespace of all calls, except those for `CLUSTER_WIDE` kinds."""

    @property
    def address(self) -> str:
        """The URL of the API server, for messages."""

    def server_version(self) -> str:
        """Return the version, such as `v1.34.4`."""

    def server_time(self) -> datetime:
        """Return the time of the API server's clock, to the second."""

    def get(self, kind: str, name: str) -> Object: ...

    def get_metadata(self, kind: str, name: str) -> Object:
        """Return the object without its content, so that a Secret's values are not transferred."""

    def list(
        self, kind: str, labels: Mapping[str, str] | None = None, fields: str = "", *, all_namespaces: bool = False
    ) -> Iterator[Object]:
        """Yield all objects that match the label and field selectors, in pages of 500."""

    def create(
        self,
        kind: str,
        manifest: Object,
        *,
        dry_run: bool = False,
        on_warning: Callable[[str], None] = ignore_warning,
    ) -> Object:
        """Return the object as the server created it (`dry_run`: would create it). Unknown fields are errors;
        `on_warning` gets the server's other warnings.

        Raises `RejectedError` for an invalid object, `ConflictError` if the name exists. The object may be this call's
        own, if the response to an earlier try was lost.
        """

    def delete(self, kind: str, name: str, uid: str) -> None:
        """Delete the object with that uid and its dependents. Raises `ConflictError` if the name has another uid."""

    def watch(self, kind: str, labels: Mapping[str, str]) -> Iterator[tuple[Change, Object] | None]:
        """Yield all objects with these labels as `ADDED`, then their changes, forever.

        Closed streams are reopened, an unreachable API is retried, and missed changes are delivered afterwards. Yields
        None from time to time, so that the caller can check its deadline.
        """

    def logs(
        self, pod: str, container: str, *, follow: bool = False, previous: bool = False, since: str | None = None
    ) -> Iterator[tuple[str, str]]:
        """Yield (time, line) of a container's log; the time is RFC 3339 with nanoseconds, as is `since`. Servers may
        include the whole second before `since`. A very long line comes in several pieces with the same time.

        Raises `NotFoundError` if there is no log (the container has not started, the pod is gone). With `follow`, the
        stream may end early, or raise `UnreachableError` after a period of silence: the caller checks whether the
        container has ended.
        """


def get_or_none(cluster: Cluster, kind: str, name: str) -> Object | None:
    """Return the object, None if it or its kind does not exist."""
    try:
        return cluster.get(kind, name)
    except NotFoundError:
        return None
