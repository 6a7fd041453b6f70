"""How a run lies on a Kubernetes cluster. Nothing here changes what is computed."""

import json
import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from cpmbee_job.spec.types import DNS_LABEL, Count, ObjectName, Quantity, Section

_SECRET = re.compile(r"(^|_)(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?)(_|$)|(ACCESS|API|PRIVATE)_KEY")
_OURS = re.compile(r"(CPMBEE|PET)_|(POD_NAME|MASTER_ADDR|MASTER_PORT|RANK|LOCAL_RANK|WORLD_SIZE)$")


def _as_text(value: Any) -> Any:
    """YAML reads 1 as a number; Kubernetes wants texts. `true` is left: whether it means True or true is unclear."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _is_env_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name):
        raise ValueError("not a name of an environment variable")
    if _OURS.match(name):
        raise ValueError("the launcher or torchrun sets this one")
    if _SECRET.search(name.upper()):
        raise ValueError("a spec holds no secrets; put it into a Secret (storage.secret, or cluster.pod_overlay)")
    return name


def _is_label_key(key: str) -> str:
    prefix, slash, name = key.rpartition("/")
    if slash and not re.fullmatch(rf"{DNS_LABEL}(\.{DNS_LABEL})*", prefix):
        raise ValueError("its prefix is no DNS name")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", name):
        raise ValueError("needs 1 to 63 letters, digits, '-', '_' and '.', after an optional DNS prefix and '/'")
    return key


def _is_free_label_key(key: str) -> str:
    if key.startswith(("cpmbee-job/", "training.kubeflow.org/")) or key == "app.kubernetes.io/managed-by":
        raise ValueError("the launcher or the operator sets this one")
    if key == "kueue.x-k8s.io/queue-name":
        raise ValueError("give the queue as cluster.queue")
    return key


def _is_label_value(value: str) -> str:
    if not re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?", value):
        raise ValueError("a label's value needs at most 63 letters, digits, '-', '_' and '.'")
    return value


def _only(*known: str) -> AfterValidator:
    """A mapping with no other keys than these."""

    def check(mapping: dict[str, Any]) -> dict[str, Any]:
        unknown = [key for key in mapping if key not in known]
        if unknown:
            raise ValueError(f"unknown key {unknown[0]}; known here: {', '.join(known)}")
        json.dumps(mapping, allow_nan=False)  # ValueError: numbers that are none
        return mapping

    return AfterValidator(check)


def _is_overlay(overlay: dict[str, Any]) -> dict[str, Any]:
    metadata, pod = overlay.get("metadata") or {}, overlay.get("spec") or {}
    if not isinstance(metadata, dict) or not isinstance(pod, dict):
        raise ValueError("metadata and spec are mappings")
    if metadata.keys() - {"labels", "annotations"}:
        raise ValueError("of metadata only labels and annotations; the operator names the pods")
    if None in (overlay.get("metadata", {}), *metadata.values()):
        raise ValueError("of metadata only single labels and annotations can be removed")
    for labels in metadata.values():
        for key in labels if isinstance(labels, dict) else ():
            _is_free_label_key(key)
    if "restartPolicy" in pod:
        raise ValueError("spec.restartPolicy is the operator's; the job's OnFailure replaces it")
    for container in [*_mappings(pod.get("containers")), *_mappings(pod.get("initContainers"))]:
        for variable in _mappings(container.get("env")):
            if variable.get("value") is not None and _SECRET.search(str(variable.get("name")).upper()):
                raise ValueError(f"the value of {variable['name']} would be shown; take it by valueFrom.secretKeyRef")
    return overlay


def _mappings(items: Any) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


Text = Annotated[str, BeforeValidator(_as_text)]
LabelKey = Annotated[str, AfterValidator(_is_label_key)]
FreeLabelKey = Annotated[LabelKey, AfterValidator(_is_free_label_key)]
LabelValue = Annotated[str, BeforeValidator(_as_text), AfterValidator(_is_label_value)]
EnvName = Annotated[str, AfterValidator(_is_env_name)]
Toleration = Annotated[dict[str, Any], _only("key", "operator", "value", "effect", "tolerationSeconds")]
Affinity = Annotated[dict[str, Any], _only("nodeAffinity", "podAffinity", "podAntiAffinity")]
Overlay = Annotated[dict[str, Any], _only("metadata", "spec"), AfterValidator(_is_overlay)]
Image = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.:/-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?(@sha256:[0-9a-f]{64})?$")]
Namespace = Annotated[str, Field(pattern=rf"^{DNS_LABEL}$")]


class WorkersSpec(Section):
    count: Annotated[int, Field(ge=1, le=9999)] = Field(
        1, description="Pods (`local`: processes, unless --processes says otherwise)."
    )
    min: Count | None = Field(
        None, description="Fewest pods that training goes on with. Default: count, so that a lost pod is waited for."
    )
    max: Annotated[int, Field(ge=1, le=9999)] | None = Field(
        None, description="Most pods that it makes use of. Default: count."
    )
    gpus: Annotated[int, Field(ge=0)] = Field(0, description="GPUs of a pod, one process each; 0 trains on CPU.")
    gpu_product: LabelValue | None = Field(
        None, description="Only nodes with this GPU, as their label `nvidia.com/gpu.product` names it."
    )
    gpu_resource: LabelKey = Field("nvidia.com/gpu", description="What the cluster calls a GPU.")
    cpu: Quantity | Count = Field(4, description="CPUs of a pod, like 4 or 500m. Requested, and the limit.")
    memory: Quantity = Field("16Gi", description="Memory of a pod. Requested, and the limit.")
    ephemeral: Quantity = Field(
        "20Gi", description="Local disk of a pod: the base's copy, rows, scratch. Requested, and the limit."
    )
    shared_memory: Quantity = Field("2Gi", description="Most of /dev/shm, which counts as memory; NCCL uses it.")
    resources: dict[LabelKey, Quantity | Count] = Field(
        {},
        description="Other resources of a pod, like `rdma/hca: 1` or `hugepages-2Mi: 4Gi`. (InfiniBand may need the "
        "capability IPC_LOCK too: `cluster.pod_overlay`, and a namespace that allows it.)",
    )

    @field_validator("resources")
    @classmethod
    def _others(cls, resources: dict[str, str | int]) -> dict[str, str | int]:
        for resource, field in {"cpu": "cpu", "memory": "memory", "ephemeral-storage": "ephemeral"}.items():
            if resource in resources:
                raise ValueError(f"{resource} has a field of its own: workers.{field}")
        return resources

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.gpu_resource in self.resources:
            raise ValueError(f"{self.gpu_resource} is asked for by workers.gpus, not by workers.resources")
        if self.gpu_product is not None and not self.gpus:
            raise ValueError("gpu_product without gpus would train on the CPU of a GPU node")
        low, high = self.min or self.count, self.max or self.count
        if not low <= self.count <= high:
            raise ValueError(f"needs min <= count <= max, not {low} <= {self.count} <= {high}")
        return self


class SchedulingPolicySpec(Section):
    """For a gang scheduler (Volcano, the scheduler plugins); the default scheduler does not read it."""

    queue: ObjectName | None = Field(
        None,
        description="Queue of a gang scheduler (Volcano, the scheduler plugins). The default scheduler reads nothing "
        "of this section.",
    )
    min_available: Count | None = Field(
        None, description="Pods that must fit before any is started. Default: workers.min."
    )
    priority_class: ObjectName | None = Field(None, description="The gang's priority class.")
    timeout: Count | None = Field(None, description="Seconds until the gang scheduler gives up.")


class ClusterSpec(Section):
    namespace: Namespace | None = Field(
        None, description="Namespace of the job. Default: the one of the kubeconfig's context."
    )
    labels: dict[FreeLabelKey, LabelValue] = Field({}, description="Labels of the job and its pods.")
    annotations: dict[FreeLabelKey, Text] = Field({}, description="Annotations of the job and its pods.")
    image_pull_policy: Annotated[str, Field(pattern="^(Always|IfNotPresent|Never)$")] = Field(
        "IfNotPresent", description="`Always`, `IfNotPresent` or `Never`."
    )
    image_pull_secrets: tuple[ObjectName, ...] = Field(
        (), strict=False, description="Secrets with the registry's credentials."
    )
    queue: ObjectName | None = Field(
        None, description="Kueue's LocalQueue; the job is made suspended, Kueue starts it."
    )
    priority_class: ObjectName | None = Field(None, description="Priority class of the pods.")
    scheduling_policy: SchedulingPolicySpec | None = Field(None, description="For a gang scheduler.")
    node_selector: dict[LabelKey, LabelValue] = Field({}, description="Labels that a node must have.")
    tolerations: tuple[Toleration, ...] = Field(
        (),
        strict=False,
        description="Taints that the pods put up with, as Kubernetes writes them: `{key: nvidia.com/gpu, operator: "
        "Exists, effect: NoSchedule}`.",
    )
    affinity: Affinity | None = Field(
        None, description="`nodeAffinity`, `podAffinity`, `podAntiAffinity`, as Kubernetes writes them."
    )
    env: dict[EnvName, Text] = Field(
        {}, description="More environment variables, like `NCCL_SOCKET_IFNAME: eth0`. No secrets."
    )
    cache_claim: ObjectName | None = Field(
        None, description="Claim of a volume for the base's copies, shared by runs. Default: the pod's own disk."
    )
    grace_period: Annotated[int, Field(ge=60)] = Field(
        120, description="Seconds that a pod has to write its checkpoint when it must go."
    )
    backoff_limit: Count | None = Field(
        None,
        description="Container restarts, over all pods, after which the job has failed. Default: 3 for each worker. "
        "The entrypoint restarts torchrun by itself, so these are rare.",
    )
    ttl: Annotated[int, Field(ge=0)] | None = Field(
        7 * 24 * 3600, description="Seconds after its end until Kubernetes forgets the job; the store keeps the run."
    )
    pod_overlay: Overlay = Field(
        {},
        description="Merged into the pod template (`metadata`, `spec`) last, for what no field covers: mappings by "
        "key, lists of named things by name, null removes.",
    )
