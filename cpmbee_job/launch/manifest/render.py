"""A job spec becomes the PyTorchJob that runs it. Nothing here asks a cluster, the time or chance.

The training operator's defaults and what they lead to are why some fields are written out, and others never are:
`nprocPerNode` would be `auto` (on CPU one process per core), `cleanPodPolicy` would leave pods behind, an empty
`metrics` makes an autoscaler, an empty `rdzvConf` kills the operator's reconcile loop, a Master beside an
`elasticPolicy` makes two worlds.
"""

import re
from collections.abc import Iterable
from typing import Any

import yaml

import cpmbee_job
from cpmbee_job.errors import SpecError
from cpmbee_job.launch.kube import naming
from cpmbee_job.launch.kube.protocol import GPU_PRODUCT_LABEL, INDEX_LABEL, QUEUE_LABEL, Object
from cpmbee_job.launch.manifest.overlay import merge
from cpmbee_job.process import contract
from cpmbee_job.run import keys
from cpmbee_job.run.resumable import spec_digest
from cpmbee_job.spec import JobSpec
from cpmbee_job.spec.cluster import SchedulingPolicySpec, WorkersSpec

USER_ID = 65532
CACHE_FOLDER = "/cache"
CA_FOLDER = "/etc/cpmbee-job/ca"
NO_SIDECAR = {"sidecar.istio.io/inject": "false"}
"""A mesh's proxy would not end with the training, nor let the ranks talk; Kubeflow's own namespaces inject it."""

MAX_RESTARTS = 100
"""To torchrun every lost peer is a failure that counts. What is really hopeless, workers record by themselves."""
RENDEZVOUS = {
    "join_timeout": 1800,  # seconds until enough pods are there: a large image may be pulled on some nodes only
    "last_call_timeout": 5,  # seconds that a complete enough world waits for more
    "read_timeout": 600,  # seconds to reach worker 0, whose image may still be pulled
}


def render(spec: JobSpec, run_id: str, namespace: str | None = None) -> Object:
    """The PyTorchJob of the run `run_id` of `spec`; `namespace` counts more than the spec's.

    Raises `SpecError` with the dotted key for what no cluster can run.
    """
    require_cluster(spec)
    namespace = namespace or spec.cluster.namespace
    url = keys.run_url(spec.output, spec.name, run_id)
    metadata = job_metadata(spec, run_id, url)
    queue = {QUEUE_LABEL: spec.cluster.queue} if spec.cluster.queue else {}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {
            "name": naming.job_name(spec.name, run_id),
            **({"namespace": namespace} if namespace else {}),
            "labels": metadata["labels"] | queue,
            "annotations": metadata["annotations"],
        },
        "spec": {
            "runPolicy": _run_policy(spec),
            "nprocPerNode": str(max(spec.workers.gpus, 1)),
            "elasticPolicy": {
                "rdzvBackend": "c10d",
                "minReplicas": spec.workers.min or spec.workers.count,
                "maxReplicas": spec.workers.max or spec.workers.count,
                "maxRestarts": MAX_RESTARTS,
                "rdzvConf": [{"key": key, "value": str(seconds)} for key, seconds in RENDEZVOUS.items()],
            },
            "pytorchReplicaSpecs": {
                "Worker": {
                    "replicas": spec.workers.count,
                    # Of the operator's policies the one under which a job survives the loss of worker 0.
                    "restartPolicy": "OnFailure",
                    "template": pod_template(spec, metadata, url),
                }
            },
        },
    }


def job_metadata(spec: JobSpec, run_id: str, url: str) -> Object:
    """Labels and annotations of a job and its pods."""
    labels = {**naming.MANAGED_BY, naming.NAME_LABEL: spec.name, naming.RUN_LABEL: run_id}
    return {
        "labels": {**spec.cluster.labels, **labels},
        "annotations": {**spec.cluster.annotations, naming.URL_ANNOTATION: url},
    }


def pod_template(spec: JobSpec, metadata: Object, url: str) -> Object:
    """A worker of the run at `url`: the init step and the training container, under the user's overlay."""
    annotations = NO_SIDECAR | metadata["annotations"]
    return _overlaid({"metadata": {**metadata, "annotations": annotations}, "spec": _pod(spec, url)}, spec)


def default_run_id(spec: JobSpec) -> str:
    """The id under which a spec is shown when nobody names one."""
    return spec_digest(spec)[:12]


def to_yaml(manifest: Object) -> str:
    """Readable, in the order of the object, the same text for the same object."""
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))


def remarks(spec: JobSpec) -> list[str]:
    """What a cluster would take, but is likely a mistake."""
    image, policy = spec.image or "", spec.cluster.image_pull_policy
    _, _, tag = image.rpartition("/")[2].partition(":")
    if image and "@" not in image and tag in ("", "latest") and policy == "IfNotPresent":
        return [
            f"image: {image} names no version, and nodes keep the one they have (image_pull_policy {policy}); pods "
            "could run different ones: give a tag or a digest"
        ]
    return []


def require_cluster(spec: JobSpec) -> None:
    """Raise for what only this machine could run."""
    if spec.image is None:
        raise SpecError("image: missing; a cluster needs one", hint="build it: `docker build --target train .`")
    for key, place in {**spec.inputs, "output": spec.output}.items():
        if not place.startswith("s3://"):
            hint = "pods need an s3:// URL; `submit` uploads local inputs by itself"
            raise SpecError(
                f"{key}: {place} is a folder of this machine, which no pod sees",
                hint="pods write to S3: s3://bucket/folder/" if key == "output" else hint,
            )


def _run_policy(spec: JobSpec) -> Object:
    """No `activeDeadlineSeconds`: the operator looks at it only when something else happens, and counts from the
    moment that Kueue admits. The trainer keeps `train.deadline`, from the first attempt on."""
    cluster, workers = spec.cluster, spec.workers
    policy: Object = {
        "cleanPodPolicy": "Running",
        # The operator sums over all pods, init containers of running ones included, so the limit grows with them.
        "backoffLimit": cluster.backoff_limit or 3 * (workers.max or workers.count),
    }
    if cluster.ttl is not None:
        policy["ttlSecondsAfterFinished"] = cluster.ttl
    if cluster.queue:
        policy["suspend"] = True
    if cluster.scheduling_policy is not None:
        policy["schedulingPolicy"] = _scheduling_policy(cluster.scheduling_policy, workers)
    return policy


def _scheduling_policy(policy: SchedulingPolicySpec, workers: WorkersSpec) -> Object:
    fields = {
        "queue": policy.queue,
        "minAvailable": policy.min_available or workers.min or workers.count,
        "priorityClass": policy.priority_class,
        "scheduleTimeoutSeconds": policy.timeout,
    }
    return {key: value for key, value in fields.items() if value is not None}


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
        "initContainers": [_prepare_container(spec, url)],
        "containers": [_train_container(spec, url)],
        "volumes": _volumes(spec),
    }


def _prepare_container(spec: JobSpec, url: str) -> Object:
    env = {
        # The operator gives no rank to init containers.
        contract.POD_INDEX_ENV: _field(f"metadata.labels['{INDEX_LABEL}']"),
        contract.SPEC_ENV: literal(spec.to_yaml()),
    }
    return _container(naming.PREPARE_CONTAINER, contract.prepare_command(url), env, spec, {})


def _train_container(spec: JobSpec, url: str) -> Object:
    workers = spec.workers
    devices: dict[str, str | int] = {workers.gpu_resource: workers.gpus} if workers.gpus else {}
    env: Object = {contract.METRICS_PORT_ENV: str(naming.METRICS_PORT)}
    ports = [{"name": naming.METRICS_PORT_NAME, "containerPort": naming.METRICS_PORT}]
    devices |= workers.resources
    return _container(naming.TRAIN_CONTAINER, contract.train_command(url), env, spec, devices) | {"ports": ports}


def _container(name: str, command: list[str], env: Object, spec: JobSpec, devices: dict[str, str | int]) -> Object:
    """What both containers have in common. A pod is given the larger of what the two ask for, not the sum."""
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
        "volumeMounts": _mounts(spec),
    }


def _env(spec: JobSpec, more: Object) -> list[Object]:
    """The user's own come last and may refer to ours, as `$(POD_NAME)`."""
    ca_bundle = f"{CA_FOLDER}/ca.crt" if spec.storage.ca_config_map else None
    storage = spec.storage.model_copy(update={"ca_bundle": ca_bundle})
    values: Object = {
        "POD_NAME": _field("metadata.name"),
        contract.CPUS_ENV: {"valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        contract.CACHE_ENV: CACHE_FOLDER,
        "HOME": "/tmp",  # noqa: S108 (a volume of the pod's own)
        contract.VERSION_ENV: str(contract.VERSION),
        contract.LAUNCHER_ENV: cpmbee_job.__version__,
        # As JSON has it, so that whoever reads it from the manifest need not know about `literal`.
        contract.STORAGE_ENV: storage.model_dump_json(exclude_defaults=True).replace("$", r"\u0024"),
        **more,
    }
    if spec.storage.secret:
        values |= {
            "AWS_ACCESS_KEY_ID": _secret(spec.storage.secret, "AWS_ACCESS_KEY_ID"),
            "AWS_SECRET_ACCESS_KEY": _secret(spec.storage.secret, "AWS_SECRET_ACCESS_KEY"),
            "AWS_SESSION_TOKEN": _secret(spec.storage.secret, "AWS_SESSION_TOKEN", optional=True),
        }
    values |= spec.cluster.env
    return [{"name": key, **(value if isinstance(value, dict) else {"value": value})} for key, value in values.items()]


def _field(path: str) -> Object:
    return {"valueFrom": {"fieldRef": {"fieldPath": path}}}


def _secret(name: str, key: str, *, optional: bool = False) -> Object:
    reference = {"name": name, "key": key}
    return {"valueFrom": {"secretKeyRef": {**reference, "optional": True} if optional else reference}}


def literal(text: str) -> str:
    """Without this Kubernetes would put variables in the place of `$(NAME)`."""
    return text.replace("$", "$$")


def _volumes(spec: JobSpec) -> list[Object]:
    claim = spec.cluster.cache_claim
    volumes: list[Object] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "cache", **({"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}})},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": spec.workers.shared_memory}},
    ]
    if spec.storage.ca_config_map:
        volumes.append({"name": "ca", "configMap": {"name": spec.storage.ca_config_map}})
    return volumes


def _mounts(spec: JobSpec) -> list[Object]:
    mounts: list[Object] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "cache", "mountPath": CACHE_FOLDER},
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
    ]
    if spec.storage.ca_config_map:
        mounts.append({"name": "ca", "mountPath": CA_FOLDER, "readOnly": True})
    return mounts


def _overlaid(template: Object, spec: JobSpec) -> Object:
    """The template with the user's overlay, still one that the operator can run."""
    key = "cluster.pod_overlay"
    merged: Object = merge(template, spec.cluster.pod_overlay, key)
    for kind, ours in (("containers", naming.TRAIN_CONTAINER), ("initContainers", naming.PREPARE_CONTAINER)):
        names = [container["name"] for container in _containers(merged, kind)]
        if ours not in names:
            raise SpecError(f"{key}.spec.{kind}: takes the container {ours} away, which does the work")
        if kind == "containers" and len(names) > 1:
            others = ", ".join(name for name in names if name != ours)
            raise SpecError(
                f"{key}.spec.{kind}: {others} beside {ours} would keep the pod from ending",
                hint="put it under initContainers, with restartPolicy: Always (a sidecar)",
            )
    return merged


def _containers(template: Object, kind: str) -> Iterable[Object]:
    containers: Any = template.get("spec", {}).get(kind) or []
    return [item for item in containers if isinstance(item, dict) and "name" in item]


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, lists of words in one line, nothing as a reference to something above."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (pyyaml's signature)
        return True

    def text(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)

    def items(self, data: list[Any]) -> yaml.SequenceNode:
        words = all(isinstance(item, str) and re.fullmatch(r"[\w./-]*", item) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=words)


_Dumper.add_representer(str, _Dumper.text)
_Dumper.add_representer(list, _Dumper.items)
# What only other readers take for a number or a truth is quoted too: to kubectl the id 123456789e12 would be a number.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.?[0-9][0-9_.]*([eE][-+]?[0-9]+)?|0[xob][0-9a-fA-F_]+)$"),
    list("-+.0123456789"),
)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^[yYnN]$"), list("yYnN"))
