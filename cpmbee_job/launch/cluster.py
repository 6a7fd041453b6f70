"""What the launcher asks of a Kubernetes cluster. Objects are the API's own JSON."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

Object = dict[str, Any]
Change = Literal["ADDED", "MODIFIED", "DELETED"]

PYTORCHJOBS = "apis/kubeflow.org/v1/pytorchjobs"
PODS = "api/v1/pods"
EVENTS = "api/v1/events"
NODES = "api/v1/nodes"
QUOTAS = "api/v1/resourcequotas"
ACCESS_REVIEWS = "apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
CRDS = "apis/apiextensions.k8s.io/v1/customresourcedefinitions"
DEPLOYMENTS = "apis/apps/v1/deployments"
WORKLOADS = "apis/kueue.x-k8s.io/v1beta1/workloads"
LOCAL_QUEUES = "apis/kueue.x-k8s.io/v1beta1/localqueues"

CLUSTER_WIDE = {NODES, ACCESS_REVIEWS, CRDS}
"""Kinds that lie in no namespace."""


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

    def get(self, kind: str, name: str) -> Object: ...

    def list(
        self, kind: str, labels: Mapping[str, str] | None = None, fields: str = "", *, all_namespaces: bool = False
    ) -> Iterator[Object]:
        """All objects with these labels and fields, fetched by pages of 500."""

    def create(self, kind: str, manifest: Object, *, dry_run: bool = False) -> Object:
        """The object as the server made it (`dry_run`: would make it). Unknown fields are errors.

        Raises `RejectedError` for an invalid object, `ConflictError` where the name is taken.
        """

    def delete(self, kind: str, name: str, uid: str) -> None:
        """Delete the object with that uid, and what it owns. `ConflictError` where the name has another by now."""

    def watch(self, kind: str, labels: Mapping[str, str]) -> Iterator[tuple[Change, Object] | None]:
        """All objects with these labels as `ADDED`, then their changes, for ever: closed streams are opened again and
        an API that does not answer is waited for. None now and then, so that the caller can look at the time.
        """

    def logs(
        self, pod: str, container: str, *, follow: bool = False, previous: bool = False, since: str | None = None
    ) -> Iterator[tuple[str, str]]:
        """(time, line) of a container's log, the time in RFC 3339 with nanoseconds. `since` is such a time too.

        Raises `NotFoundError` where there is no log (the container has not started, the pod is gone). The stream of
        `follow` may end early: the caller looks whether the container has.
        """
