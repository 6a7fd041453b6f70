"""How a run is placed on a Kubernetes cluster. These fields do not change what is computed."""

import json
import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from cpmbee_job.spec.types import DNS_LABEL, Count, ObjectName, Quantity, Section

_SECRET = re.compile(r"(^|_)(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?)(_|$)|(ACCESS|API|PRIVATE)_KEY")
_RESERVED = re.compile(r"(CPMBEE|PET)_|(POD_NAME|MASTER_ADDR|MASTER_PORT|RANK|LOCAL_RANK|WORLD_SIZE)$")


def _to_string(value: Any) -> Any:
    """Convert a number to the string that Kubernetes requires. `true` is ambiguous (True or true) and not converted."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _is_env_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name):
        raise ValueError("not a valid name of an environment variable")
    if _RESERVED.match(name):
        raise ValueError("the launcher or torchrun sets this variable")
    if _SECRET.search(name.upper()):
        raise ValueError("a spec must not contain secrets; use a Secret (storage.secret, or cluster.pod_overlay)")
    return name


def _is_label_key(key: str) -> str:
    prefix, slash, name = key.rpartition("/")
    if slash and not re.fullmatch(rf"{DNS_LABEL}(\.{DNS_LABEL})*", prefix):
        raise ValueError("the prefix must be a DNS name")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", name):
        raise ValueError("must have 1 to 63 letters, digits, '-', '_' and '.', after an optional DNS prefix and '/'")
    return key


def _is_settable_label_key(key: str) -> str:
    if key.startswith(("cpmbee-job/", "training.kubeflow.org/")) or key == "app.kubernetes.io/managed-by":
        raise ValueError("the launcher or the operator sets this key")
    if key == "kueue.x-k8s.io/queue-name":
        raise ValueError("set cluster.queue instead")
    return key


def _is_label_value(value: str) -> str:
    if not re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?", value):
        raise ValueError("the value of a label must have at most 63 letters, digits, '-', '_' and '.'")
    return value


def _allow_keys(*known: str) -> AfterValidator:
    """Allow only these keys in a mapping."""

    def check(mapping: dict[str, Any]) -> dict[str, Any]:
        unknown = [key for key in mapping if key not in known]
        if unknown:
            raise ValueError(f"unknown key {unknown[0]}; valid keys: {', '.join(known)}")
        json.dumps(mapping, allow_nan=False)  # ValueError for NaN and infinity
        return mapping

    return AfterValidator(check)


def _is_overlay(overlay: dict[str, Any]) -> dict[str, Any]:
    metadata, pod = overlay.get("metadata") or {}, overlay.get("spec") or {}
    if not isinstance(metadata, dict) or not isinstance(pod, dict):
        raise ValueError("metadata and spec must be mappings")
    if metadata.keys() - {"labels", "annotations"}:
        raise ValueError("metadata may contain only labels and annotations; the operator names the pods")
    if None in (overlay.get("metadata", {}), *metadata.values()):
        raise ValueError("metadata: only single labels and annotations can be removed")
    for labels in metadata.values():
        for key in labels if isinstance(labels, dict) else ():
            _is_settable_label_key(key)
    if "restartPolicy" in pod:
        raise ValueError("spec.restartPolicy cannot be set; the job always uses OnFailure")
    for container in [*_mappings(pod.get("containers")), *_mappings(pod.get("initContainers"))]:
        for variable in _mappings(container.get("env")):
            if variable.get("value") is not None and _SECRET.search(str(variable.get("name")).upper()):
                raise ValueError(f"the value of {variable['name']} would be visible; use valueFrom.secretKeyRef")
    return overlay


def _mappings(items: Any) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


Text = Annotated[str, BeforeValidator(_to_string)]
LabelKey = Annotated[str, AfterValidator(_is_label_key)]
SettableLabelKey = Annotated[LabelKey, AfterValidator(_is_settable_label_key)]
LabelValue = Annotated[str, BeforeValidator(_to_string), AfterValidator(_is_label_value)]
EnvName = Annotated[str, AfterValidator(_is_env_name)]
Toleration = Annotated[dict[str, Any], _allow_keys("key", "operator", "value", "effect", "tolerationSeconds")]
Affinity = Annotated[dict[str, Any], _allow_keys("nodeAffinity", "podAffinity", "podAntiAffinity")]
Overlay = Annotated[dict[str, Any], _allow_keys("metadata", "spec"), AfterValidator(_is_overlay)]
Image = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.:/-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?(@sha256:[0-9a-f]{64})?$")]
Namespace = Annotated[str, Field(pattern=rf"^{DNS_LABEL}$")]


RESOURCE_KEYS = {"cpu": "workers.cpu", "memory": "workers.memory", "ephemeral-storage": "workers.ephemeral"}
"""By Kubernetes' name of a resource of every pod: its key in the spec."""


class WorkersSpec(Section):
    count: Annotated[int, Field(ge=1, le=9999)] = 1
    """Number of pods. `local`: number of processes, unless --processes is set."""
    min: Count | None = None
    """Minimum number of pods for training to continue. Default: count (training waits for a lost pod)."""
    max: Annotated[int, Field(ge=1, le=9999)] | None = None
    """Maximum number of pods. Default: count."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs per pod, one process each; 0 trains on CPU."""
    gpu_product: LabelValue | None = None
    """Use only nodes whose label `nvidia.com/gpu.product` has this value."""
    gpu_resource: LabelKey = "nvidia.com/gpu"
    """Resource name of a GPU in the cluster."""
    cpu: Quantity | Count = 4
    """CPU request and limit of a pod, like 4 or 500m."""
    memory: Quantity = "16Gi"
    """Memory request and limit of a pod."""
    ephemeral: Quantity = "20Gi"
    """Ephemeral storage request and limit of a pod, for copies of model and data and for temporary files."""
    shared_memory: Quantity = "2Gi"
    """Size limit of /dev/shm, which NCCL uses. It counts as memory."""
    resources: dict[LabelKey, Quantity | Count] = Field({})
    """Other resources of a pod, like `rdma/hca: 1` or `hugepages-2Mi: 4Gi`. InfiniBand may also require the capability
    IPC_LOCK: add it with `cluster.pod_overlay`, in a namespace that allows it."""

    @field_validator("resources")
    @classmethod
    def _without_own_field(cls, resources: dict[str, str | int]) -> dict[str, str | int]:
        for resource, key in RESOURCE_KEYS.items():
            if resource in resources:
                raise ValueError(f"set {key} instead of {resource}")
        return resources

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.gpu_resource in self.resources:
            raise ValueError(f"set workers.gpus instead of {self.gpu_resource} in workers.resources")
        if self.gpu_product is not None and not self.gpus:
            raise ValueError("gpu_product requires gpus")
        low, high = self.min or self.count, self.max or self.count
        if not low <= self.count <= high:
            raise ValueError(f"must have min <= count <= max (got {low} <= {self.count} <= {high})")
        return self


class SchedulingPolicySpec(Section):
    queue: ObjectName | None = None
    """Queue of a gang scheduler (Volcano, scheduler plugins). The default scheduler ignores this section."""
    min_available: Count | None = None
    """Minimum number of pods to schedule together. Default: workers.min."""
    priority_class: ObjectName | None = None
    """Priority class of the gang."""
    timeout: Count | None = None
    """Schedule timeout of the gang, in seconds."""


class ClusterSpec(Section):
    namespace: Namespace | None = None
    """Namespace of the job. Default: that of the kubeconfig context."""
    labels: dict[SettableLabelKey, LabelValue] = Field({})
    """Labels of the job and its pods."""
    annotations: dict[SettableLabelKey, Text] = Field({})
    """Annotations of the job and its pods."""
    image_pull_policy: Annotated[str, Field(pattern="^(Always|IfNotPresent|Never)$")] = "IfNotPresent"
    """Image pull policy: `Always`, `IfNotPresent` or `Never`."""
    image_pull_secrets: tuple[ObjectName, ...] = Field((), strict=False)
    """Secrets with credentials of the image registry."""
    queue: ObjectName | None = None
    """LocalQueue of Kueue. The job is created suspended, and Kueue starts it."""
    priority_class: ObjectName | None = None
    """Priority class of the pods."""
    scheduling_policy: SchedulingPolicySpec | None = None
    """Settings for a gang scheduler."""
    node_selector: dict[LabelKey, LabelValue] = Field({})
    """Node selector of the pods."""
    tolerations: tuple[Toleration, ...] = Field((), strict=False)
    """Tolerations of the pods, like `{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}`."""
    affinity: Affinity | None = None
    """Affinity of the pods: `nodeAffinity`, `podAffinity`, `podAntiAffinity`."""
    env: dict[EnvName, Text] = Field({})
    """Additional environment variables, like `NCCL_SOCKET_IFNAME: eth0`. Secrets are not allowed."""
    cache_claim: ObjectName | None = None
    """PersistentVolumeClaim for copies of the model, shared by runs. Default: the pod's ephemeral storage."""
    grace_period: Annotated[int, Field(ge=60)] = 120
    """Termination grace period in seconds, in which a pod writes its checkpoint."""
    backoff_limit: Count | None = None
    """Container restarts, over all pods, after which the job fails. Default: 3 per worker. They are rare, because the
    entrypoint restarts torchrun within the container."""
    ttl: Annotated[int, Field(ge=0)] | None = 7 * 24 * 3600
    """Seconds after its end until Kubernetes deletes the job. The object store keeps the run."""
    pod_overlay: Overlay = Field({})
    """Merged into the pod template (`metadata`, `spec`) last, for settings without a field: mappings by key, lists of
    named objects by name; null removes."""
