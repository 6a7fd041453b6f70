"""Render the pod template of a worker."""

from collections.abc import Iterable
from typing import Any

import cpmbee_job
from cpmbee_job.errors import SpecError
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import GPU_PRODUCT_LABEL, INDEX_LABEL, Object
from cpmbee_job.launch.manifest.overlay import merge
from cpmbee_job.process import contract
from cpmbee_job.spec import JobSpec

USER_ID = 65532
CACHE_FOLDER = "/cache"
CA_FOLDER = "/etc/cpmbee-job/ca"
NO_SIDECAR = {"sidecar.istio.io/inject": "false"}
"""A service mesh's proxy would keep the pod running after the training, and block the traffic between ranks. Kubeflow's
namespaces inject it by default."""


def pod_template(spec: JobSpec, metadata: Object, url: str) -> Object:
    """Return the template of a worker of the run at `url`: the init container `prepare` and the container `pytorch`,
    merged with the spec's pod overlay.

    Raises `SpecError` for an overlay that breaks the template.
    """
    annotations = NO_SIDECAR | metadata["annotations"]
    template = {"metadata": {**metadata, "annotations": annotations}, "spec": _pod(spec, url)}
    key = "cluster.pod_overlay"
    merged: Object = merge(template, spec.cluster.pod_overlay, key)
    for kind, ours in (("containers", naming.TRAIN_CONTAINER), ("initContainers", naming.PREPARE_CONTAINER)):
        names = [container["name"] for container in _containers(merged, kind)]
        if ours not in names:
            raise SpecError(f"{key}.spec.{kind}: must not remove the container {ours}")
        if kind == "containers" and len(names) > 1:
            others = ", ".join(name for name in names if name != ours)
            raise SpecError(
                f"{key}.spec.{kind}: {others} would keep the pod running after {ours} has ended",
                hint="move it to initContainers with restartPolicy: Always (a sidecar)",
            )
    return merged


def literal(text: str) -> str:
    """Escape `$(NAME)`, which Kubernetes would expand."""
    return text.replace("$", "$$")


def _containers(template: Object, kind: str) -> Iterable[Object]:
    containers: Any = template.get("spec", {}).get(kind) or []
    return [item for item in containers if isinstance(item, dict) and "name" in item]


def _pod(spec: JobSpec, url: str) -> Object:
    cluster, workers = spec.cluster, spec.workers
    node_labels = {GPU_PRODUCT_LABEL: workers.gpu_product} if workers.gpu_product else {}
    optional = {
        "serviceAccountName": spec.storage.service_account,
        "priorityClassName": cluster.priority_class,
        "imagePullSecrets": [{"name": name} for name in cluster.image_pull_secrets],
        "nodeSelector": node_labels | cluster.node_selector,
        "tolerations": list(cluster.tolerations),
        "affinity": cluster.affinity,
    }
    prepare_env = {
        # The operator does not set the rank of init containers.
        contract.POD_INDEX_ENV: _field(f"metadata.labels['{INDEX_LABEL}']"),
        contract.SPEC_ENV: literal(spec.to_yaml()),
    }
    train_env = {contract.METRICS_PORT_ENV: str(naming.METRICS_PORT)}
    gpus: dict[str, str | int] = {workers.gpu_resource: workers.gpus} if workers.gpus else {}
    devices = gpus | workers.resources
    train = _container(naming.TRAIN_CONTAINER, contract.train_command(url), train_env, spec, devices)
    ports = [{"name": naming.METRICS_PORT_NAME, "containerPort": naming.METRICS_PORT}]
    return {
        **{key: value for key, value in optional.items() if value},
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": cluster.grace_period,
        "initContainers": [_container(naming.PREPARE_CONTAINER, contract.prepare_command(url), prepare_env, spec, {})],
        "containers": [train | {"ports": ports}],
        "volumes": [{"name": name, **source} for name, (_, source) in _volumes(spec).items()],
    }


def _container(name: str, command: list[str], env: Object, spec: JobSpec, devices: dict[str, str | int]) -> Object:
    """The common parts of both containers. The pod requests the larger of their resources, not the sum."""
    workers = spec.workers
    amounts = {"cpu": workers.cpu, "memory": workers.memory, "ephemeral-storage": workers.ephemeral, **devices}
    resources = {resource: str(amount) for resource, amount in amounts.items()}
    return {
        "name": name,
        "image": spec.image,
        "imagePullPolicy": spec.cluster.image_pull_policy,
        "command": ["tini", "--", "python"],
        "args": [literal(argument) for argument in command],
        "env": _env(spec, env),
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": name, "mountPath": path} | ({"readOnly": True} if name == "ca" else {})
            for name, (path, _) in _volumes(spec).items()
        ],
    }


def _env(spec: JobSpec, more: Object) -> list[Object]:
    """Our variables, then the spec's, which may refer to ours, as `$(POD_NAME)`."""
    ca_bundle = f"{CA_FOLDER}/ca.crt" if spec.storage.ca_config_map else None
    storage = spec.storage.model_copy(update={"ca_bundle": ca_bundle})
    values: Object = {
        "POD_NAME": _field("metadata.name"),
        contract.CPUS_ENV: {"valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        contract.CACHE_ENV: CACHE_FOLDER,
        "HOME": "/tmp",  # noqa: S108 (an emptyDir volume)
        contract.VERSION_ENV: str(contract.VERSION),
        contract.LAUNCHER_ENV: cpmbee_job.__version__,
        # Escaped as JSON, so that readers of the manifest do not have to undo `literal`.
        contract.STORAGE_ENV: storage.model_dump_json(exclude_defaults=True).replace("$", r"\u0024"),
        **more,
    }
    if spec.storage.secret:
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            optional = {"optional": True} if key == "AWS_SESSION_TOKEN" else {}
            reference = {"name": spec.storage.secret, "key": key, **optional}
            values[key] = {"valueFrom": {"secretKeyRef": reference}}
    values |= spec.cluster.env
    return [{"name": key, **(value if isinstance(value, dict) else {"value": value})} for key, value in values.items()]


def _field(path: str) -> Object:
    return {"valueFrom": {"fieldRef": {"fieldPath": path}}}


def _volumes(spec: JobSpec) -> dict[str, tuple[str, Object]]:
    """Return the mount path and the source of each volume by name."""
    claim = spec.cluster.cache_claim
    volumes: dict[str, tuple[str, Object]] = {
        "tmp": ("/tmp", {"emptyDir": {}}),  # noqa: S108
        "cache": (CACHE_FOLDER, {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}),
        "shared-memory": ("/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": spec.workers.shared_memory}}),  # noqa: S108
    }
    if spec.storage.ca_config_map:
        volumes["ca"] = (CA_FOLDER, {"configMap": {"name": spec.storage.ca_config_map}})
    return volumes
