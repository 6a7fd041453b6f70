"""What the cluster and the object store contain about a run at one moment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cpmbee_job.launch.kube.protocol import Object
from cpmbee_job.spec import JobSpec


@dataclass
class ClusterSnapshot:
    """The Kubernetes objects of a run."""

    known: bool = True
    """Whether the API server answered. If not, a missing object means nothing."""
    job: Object | None = None
    """The PyTorchJob."""
    pods: Sequence[Object] = ()
    events: Sequence[Object] = ()
    """Of the PyTorchJob and its pods."""
    silent_nodes: Mapping[str, str] = field(default_factory=dict)
    """Nodes that do not respond, with the reason if it is known."""
    workload: Object | None = None
    """Kueue's Workload of the PyTorchJob."""


@dataclass(frozen=True)
class StoreSnapshot:
    """The documents of a run in the object store."""

    known: bool = True
    """Whether the object store answered. If not, a missing document means nothing."""
    spec: JobSpec | None = None
    heartbeat: dict[str, Any] | None = None
    """`status.json`."""
    result: dict[str, Any] | None = None
    """`result.json`."""
