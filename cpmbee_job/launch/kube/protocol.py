"""What the launcher asks of a Kubernetes cluster. Objects are the API's own JSON."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, Protocol

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
"""Of a group, each version is an object that lists the `resources` it serves; everybody may look."""

INDEX_LABEL = "training.kubeflow.org/replica-index"
"""The training operator's, of a pod."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
"""Kueue's, of a job."""
GPU_PRODUCT_LABEL = "nvidia.com/gpu.product"
"""NVIDIA's feature discovery's, of a node."""

CLUSTER_WIDE = {NODES, NAMESPACES, ACCESS_REVIEWS, KUBEFLOW_VERSIONS, KUEUE_VERSIONS}
"""Kinds that lie in no namespace."""


def ignore_warning(_text: str) -> None:
    """Nobody is told."""


class Cluster(Protocol):
    """One namespace of a cluster. A kind of object is named by its API path, like `PODS`.

    Every method raises `ClusterError` where the API refuses (401, 403), `UnreachableError` where it does not answer
    after some tries, `NotFoundError` where there is no such object or no such kind.
    """

    @property
    def namespace(self) -> str:
        """The namespace that all calls mean, but for those of `CLUSTER_WIDE` kinds."""

    @property
    def address(self) -> str:
        """The API server's, for words."""

    def server_version(self) -> str:
        """Like `v1.34.4`."""

    def server_time(self) -> datetime:
        """What the API server's clock says, to the second."""

    def get(self, kind: str, name: str) -> Object: ...

    def get_metadata(self, kind: str, name: str) -> Object:
        """The object without its content: a Secret's values stay where they are."""

    def list(
        self, kind: str, labels: Mapping[str, str] | None = None, fields: str = "", *, all_namespaces: bool = False
    ) -> Iterator[Object]:
        """All objects with these labels and fields, fetched by pages of 500."""

    def create(
        self,
        kind: str,
        manifest: Object,
        *,
        dry_run: bool = False,
        on_warning: Callable[[str], None] = ignore_warning,
    ) -> Object:
        """The object as the server made it (`dry_run`: would make it). Unknown fields are errors; `on_warning` learns
        what else the server has to say.

        Raises `RejectedError` for an invalid object, `ConflictError` where the name is taken: by this very call, it
        may be, where the first answer was lost on the way.
        """

    def delete(self, kind: str, name: str, uid: str) -> None:
        """Delete the object with that uid, and what it owns. `ConflictError` where the name has another by now."""

    def watch(self, kind: str, labels: Mapping[str, str]) -> Iterator[tuple[Change, Object] | None]:
        """All objects with these labels as `ADDED`, then their changes, for ever: closed streams are opened again, an
        API that does not answer is waited for, and what was missed meanwhile is told as changes. None now and then, so
        that the caller can look at the time.
        """

    def logs(
        self, pod: str, container: str, *, follow: bool = False, previous: bool = False, since: str | None = None
    ) -> Iterator[tuple[str, str]]:
        """(time, line) of a container's log, the time in RFC 3339 with nanoseconds. `since` is such a time too; servers
        may take the whole second before it. A very long line comes in pieces of the same time.

        Raises `NotFoundError` where there is no log (the container has not started, the pod is gone). The stream of
        `follow` may end early, or break off after some time of silence with `UnreachableError`: the caller looks
        whether the container has ended.
        """
