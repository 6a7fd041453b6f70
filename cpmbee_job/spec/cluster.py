"""How a run lies on a Kubernetes cluster. Nothing here changes what is computed."""

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

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
    if not re.fullmatch(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", name):
        raise ValueError("needs 1 to 63 letters, digits, '-', '_' and '.', after an optional DNS prefix and '/'")
    return key


def _is_label_value(value: str) -> str:
    if not re.fullmatch(r"([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?", value):
        raise ValueError("a label's value needs at most 63 letters, digits, '-', '_' and '.'")
    return value


Text = Annotated[str, BeforeValidator(_as_text)]
LabelKey = Annotated[str, AfterValidator(_is_label_key)]
LabelValue = Annotated[str, BeforeValidator(_as_text), AfterValidator(_is_label_value)]
EnvName = Annotated[str, AfterValidator(_is_env_name)]
Image = Annotated[str, Field(pattern=r"^[a-z0-9][\w.:/-]*(@sha256:[0-9a-f]{64})?$")]
Namespace = Annotated[str, Field(pattern=rf"^{DNS_LABEL}$")]


class WorkersSpec(Section):
    count: Annotated[int, Field(ge=1, le=9999)] = Field(
        1, description="Pods (`local`: processes, unless --processes says otherwise)."
    )
    min: Count | None = Field(
        None, description="Fewest pods that training goes on with. Default: count, so that a lost pod is waited for."
    )
    max: Count | None = Field(None, description="Most pods that it makes use of. Default: count.")
    gpus: Annotated[int, Field(ge=0)] = Field(0, description="GPUs of a pod, one process each; 0 trains on CPU.")
    gpu_product: str | None = Field(
        None, description="Only nodes with this GPU, as their label `nvidia.com/gpu.product` names it."
    )
    gpu_resource: LabelKey = Field("nvidia.com/gpu", description="What the cluster calls a GPU.")
    cpu: Quantity | Count = Field(4, description="CPUs of a pod, like 4 or 500m. Requested, and the limit.")
    memory: Quantity = Field("16Gi", description="Memory of a pod. Requested, and the limit.")
    ephemeral: Quantity = Field(
        "20Gi", description="Local disk of a pod: the base's copy, rows, scratch. Requested, and the limit."
    )
    shared_memory: Quantity = Field("2Gi", description="Most of /dev/shm, which counts as memory; NCCL uses it.")
    resources: dict[LabelKey, Count] = Field({}, description="Other resources of a pod, like `rdma/hca: 1`.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.min or self.count, self.max or self.count
        if not low <= self.count <= high:
            raise ValueError(f"needs min <= count <= max, not {low} <= {self.count} <= {high}")
        return self


class SchedulingPolicySpec(Section):
    """For a gang scheduler (Volcano, the scheduler plugins); the default scheduler does not read it."""

    queue: ObjectName | None = Field(None, description="The gang scheduler's queue.")
    min_available: Count | None = Field(
        None, description="Pods that must fit before any is started. Default: workers.min."
    )
    priority_class: ObjectName | None = Field(None, description="The gang's priority class.")
    timeout: Count | None = Field(None, description="Seconds until the gang scheduler gives up.")


class ClusterSpec(Section):
    namespace: Namespace | None = Field(
        None, description="Namespace of the job. Default: the one of the kubeconfig's context."
    )
    labels: dict[LabelKey, LabelValue] = Field({}, description="Labels of the job and its pods.")
    annotations: dict[LabelKey, Text] = Field({}, description="Annotations of the job and its pods.")
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
    tolerations: tuple[dict[str, Any], ...] = Field(
        (), strict=False, description="Taints that the pods put up with, as Kubernetes writes them."
    )
    affinity: dict[str, Any] | None = Field(None, description="Affinity of the pods, as Kubernetes writes it.")
    env: dict[EnvName, Text] = Field(
        {}, description="More environment variables, like `NCCL_SOCKET_IFNAME: eth0`. No secrets."
    )
    cache_claim: ObjectName | None = Field(
        None, description="Claim of a volume for the base's copies, shared by runs. Default: the pod's own disk."
    )
    grace_period: Annotated[int, Field(ge=60)] = Field(
        120, description="Seconds that a pod has to write its checkpoint when it must go."
    )
    backoff_limit: Count = Field(
        6,
        description="Container restarts, over all pods, after which the job has failed. The entrypoint restarts "
        "torchrun by itself, so these are rare.",
    )
    ttl: Annotated[int, Field(ge=0)] | None = Field(
        7 * 24 * 3600, description="Seconds after its end until Kubernetes forgets the job; the store keeps the run."
    )
    pod_overlay: dict[str, Any] = Field(
        {},
        description="Merged into the pod template (`metadata`, `spec`) last, for what no field covers: mappings by "
        "key, lists of named things by name, null removes.",
    )
