"""Translate a path in the manifest, as the API server names it, to the key of the spec that it comes from."""

import re
from typing import Any

from cpmbee_job.launch.kube.protocol import GPU_PRODUCT_LABEL, Object
from cpmbee_job.launch.manifest.overlay import NAMED_BY
from cpmbee_job.spec import JobSpec
from cpmbee_job.spec.cluster import RESOURCE_KEYS

_TEMPLATE = ("spec", "pytorchReplicaSpecs", "Worker", "template")

# Path prefixes below the pod template and their keys; the rest of a path is appended to the key.
_POD_KEYS: tuple[tuple[str, str], ...] = (
    ("metadata.labels", "cluster.labels"),
    ("metadata.annotations", "cluster.annotations"),
    ("spec.tolerations", "cluster.tolerations"),
    ("spec.affinity", "cluster.affinity"),
    (f"spec.nodeSelector.{GPU_PRODUCT_LABEL}", "workers.gpu_product"),
    ("spec.nodeSelector", "cluster.node_selector"),
    ("spec.priorityClassName", "cluster.priority_class"),
    ("spec.serviceAccountName", "storage.service_account"),
    ("spec.imagePullSecrets", "cluster.image_pull_secrets"),
    ("spec.terminationGracePeriodSeconds", "cluster.grace_period"),
    ("CONTAINER.image", "image"),
    ("CONTAINER.imagePullPolicy", "cluster.image_pull_policy"),
    *((f"CONTAINER.resources.AMOUNT.{resource}", key) for resource, key in RESOURCE_KEYS.items()),
    ("CONTAINER.resources.AMOUNT", "workers.resources"),
)
_JOB_KEYS: tuple[tuple[str, str], ...] = (
    ("metadata.name", "name"),
    ("metadata.namespace", "cluster.namespace"),
    ("metadata.labels", "cluster.labels"),
    ("metadata.annotations", "cluster.annotations"),
    ("spec.runPolicy.ttlSecondsAfterFinished", "cluster.ttl"),
    ("spec.runPolicy.backoffLimit", "cluster.backoff_limit"),
    ("spec.runPolicy.schedulingPolicy.minAvailable", "cluster.scheduling_policy.min_available"),
    ("spec.runPolicy.schedulingPolicy.queue", "cluster.scheduling_policy.queue"),
    ("spec.runPolicy.schedulingPolicy.priorityClass", "cluster.scheduling_policy.priority_class"),
    ("spec.runPolicy.schedulingPolicy.scheduleTimeoutSeconds", "cluster.scheduling_policy.timeout"),
    ("spec.nprocPerNode", "workers.gpus"),
    ("spec.elasticPolicy.minReplicas", "workers.min"),
    ("spec.elasticPolicy.maxReplicas", "workers.max"),
    ("spec.pytorchReplicaSpecs.Worker.replicas", "workers.count"),
)
_VOLUMES = {"cache": "cluster.cache_claim", "shared-memory": "workers.shared_memory", "ca": "storage.ca_config_map"}


def spec_key(path: str, spec: JobSpec, template: Object, *, in_pod: bool = False) -> str:
    """Return the spec's dotted key for a path in the PyTorchJob, or (`in_pod`) in a Pod made from its `template`.

    A path that comes from no key is returned unchanged.
    """
    steps = _split(path)
    if not in_pod:
        if steps[: len(_TEMPLATE)] != _TEMPLATE:
            return _translate(steps, _JOB_KEYS) or path
        steps = steps[len(_TEMPLATE) :]
    return (
        _overlay_key(steps, spec.cluster.pod_overlay, template)
        or _named_key(steps, spec, template)
        or _translate(steps, _POD_KEYS)
        or path
    )


def _split(path: str) -> tuple[str, ...]:
    """Split a path at dots and brackets. Names like `nvidia.com/gpu`, which dots split too, are joined again."""
    steps: list[str] = []
    for bracketed, plain in re.findall(r"\[([^\]]*)\]|([^.\[\]]+)", path):
        step = bracketed or plain
        if steps and "/" not in steps[-1] and re.fullmatch(r"[a-z]+/.*", step):
            steps[-1] = f"{steps[-1]}.{step}"
        else:
            steps.append(step)
    return tuple(steps)


def _translate(steps: tuple[str, ...], table: tuple[tuple[str, str], ...]) -> str | None:
    path = ".".join(steps)
    path = re.sub(r"^spec\.(containers|initContainers)\.[^.]+", "CONTAINER", path)
    path = re.sub(r"^(CONTAINER\.resources)\.(limits|requests)", r"\1.AMOUNT", path)
    for prefix, key in table:
        if path == prefix or path.startswith(f"{prefix}."):
            rest = path[len(prefix) :]
            return key + (rest.removesuffix(".name") if key == "cluster.image_pull_secrets" else rest)
    return None


def _named_key(steps: tuple[str, ...], spec: JobSpec, template: Object) -> str | None:
    """Return the key of what the manifest contains by name: GPUs, environment variables, volumes."""
    match steps:
        case ("spec", "containers" | "initContainers", _, "resources", _, spec.workers.gpu_resource, *_):
            return "workers.gpus"
        case ("spec", "containers" | "initContainers" as kind, index, "env", variable, *_):
            container = _member(template["spec"].get(kind), index, "name") or {}
            name = str((_member(container.get("env"), variable, "name") or {}).get("name"))
            if name in spec.cluster.env:
                return f"cluster.env.{name}"
            return "storage.secret" if name.startswith("AWS_") else None
        case ("spec", "volumes", index, *_):
            return _VOLUMES.get(str((_member(template["spec"].get("volumes"), index, "name") or {}).get("name")))
    return None


def _overlay_key(steps: tuple[str, ...], overlay: Any, template: Any) -> str | None:
    """Return the path in `cluster.pod_overlay` if the overlay has set the place."""
    found = ["cluster.pod_overlay"]
    for number, step in enumerate(steps):
        if isinstance(overlay, list):
            key = NAMED_BY.get(steps[number - 1], "name")
            template = _member(template, step, key)
            same = [i for i, item in enumerate(overlay) if template is not None and _same(item, template, key)]
            if not same:
                return None
            overlay = overlay[same[0]]
            found.append(str(same[0]))
        elif isinstance(overlay, dict):
            if step not in overlay:
                # The overlay owns a missing key only in an object that it has created as a whole.
                return ".".join([*found, step]) if number > 2 and overlay == template else None
            overlay = overlay[step]
            template = template.get(step) if isinstance(template, dict) else None
            found.append(step)
        else:
            break
    return ".".join(found) if len(found) > 1 else None


def _member(items: Any, index: str, key: str) -> Any:
    """Return the member of a list by its index or its name, None if there is none."""
    if not isinstance(items, list):
        return None
    if index.isdigit() and int(index) < len(items):
        return items[int(index)]
    return next((item for item in items if isinstance(item, dict) and item.get(key) == index), None)


def _same(item: Any, template: Any, key: str) -> bool:
    if isinstance(item, dict) and isinstance(template, dict) and key in item:
        return bool(item[key] == template.get(key))
    return bool(item == template)
