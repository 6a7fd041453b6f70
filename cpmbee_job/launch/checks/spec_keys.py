"""From a place in the manifest, as the API server names it, back to the key of the spec that it was made from."""

import re
from typing import Any

from cpmbee_job.launch.kube.protocol import Object
from cpmbee_job.launch.manifest.overlay import NAMED_BY
from cpmbee_job.spec import JobSpec

_TEMPLATE = ("spec", "pytorchReplicaSpecs", "Worker", "template")

# Paths below the pod template, and what they come from; what follows such a path is appended to the key.
_POD_KEYS: tuple[tuple[str, str], ...] = (
    ("metadata.labels", "cluster.labels"),
    ("metadata.annotations", "cluster.annotations"),
    ("spec.tolerations", "cluster.tolerations"),
    ("spec.affinity", "cluster.affinity"),
    ("spec.nodeSelector.nvidia.com/gpu.product", "workers.gpu_product"),
    ("spec.nodeSelector", "cluster.node_selector"),
    ("spec.priorityClassName", "cluster.priority_class"),
    ("spec.serviceAccountName", "storage.service_account"),
    ("spec.imagePullSecrets", "cluster.image_pull_secrets"),
    ("spec.terminationGracePeriodSeconds", "cluster.grace_period"),
    ("CONTAINER.image", "image"),
    ("CONTAINER.imagePullPolicy", "cluster.image_pull_policy"),
    ("CONTAINER.resources.AMOUNT.cpu", "workers.cpu"),
    ("CONTAINER.resources.AMOUNT.memory", "workers.memory"),
    ("CONTAINER.resources.AMOUNT.ephemeral-storage", "workers.ephemeral"),
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
    """The spec's dotted key for a path of the PyTorchJob, or (`in_pod`) of a Pod made of its `template`.

    A path that comes from no key is returned as it is.
    """
    parts = tuple(bracketed or plain for bracketed, plain in re.findall(r"\[([^\]]*)\]|([^.\[\]]+)", path))
    parts = _joined_labels(parts)
    if not in_pod:
        if parts[: len(_TEMPLATE)] != _TEMPLATE:
            return _translated(parts, _JOB_KEYS) or path
        parts = parts[len(_TEMPLATE) :]
    return (
        _overlay_key(parts, spec.cluster.pod_overlay, template)
        or _named_key(parts, spec, template)
        or _translated(parts, _POD_KEYS)
        or path
    )


def _named_key(parts: tuple[str, ...], spec: JobSpec, template: Object) -> str | None:
    """For what the manifest has by name: GPUs, variables, volumes."""
    match parts:
        case ("spec", "containers" | "initContainers", _, "resources", _, resource, *_) if (
            resource == spec.workers.gpu_resource
        ):
            return "workers.gpus"
        case ("spec", "containers" | "initContainers" as kind, index, "env", variable, *_):
            container = _member(template["spec"].get(kind), index, "name")
            name = str(_member((container or {}).get("env"), variable, "name", {}).get("name"))
            if name in spec.cluster.env:
                return f"cluster.env.{name}"
            return "storage.secret" if name.startswith("AWS_") else None
        case ("spec", "volumes", index, *_):
            return _VOLUMES.get(str(_member(template["spec"].get("volumes"), index, "name", {}).get("name")))
    return None


def _overlay_key(parts: tuple[str, ...], overlay: Any, template: Any) -> str | None:
    """The path inside `cluster.pod_overlay`, where that is what wrote the place."""
    found = ["cluster.pod_overlay"]
    for number, part in enumerate(parts):
        if isinstance(overlay, list):
            key = NAMED_BY.get(parts[number - 1], "name")
            template = _member(template, part, key)
            matching = [i for i, item in enumerate(overlay) if template is not None and _same(item, template, key)]
            if not matching:
                return None
            overlay = overlay[matching[0]]
            found.append(str(matching[0]))
        elif isinstance(overlay, dict):
            if part not in overlay:
                # a key that lacks in a thing that the overlay alone has made
                is_all_there = number > 2 and overlay == template
                return ".".join([*found, part]) if is_all_there else None
            overlay = overlay[part]
            template = template.get(part) if isinstance(template, dict) else None
            found.append(part)
        else:
            break
    return ".".join(found) if len(found) > 1 else None


def _translated(parts: tuple[str, ...], table: tuple[tuple[str, str], ...]) -> str | None:
    path = ".".join(parts)
    path = re.sub(r"^spec\.(containers|initContainers)\.[^.]+", "CONTAINER", path)
    path = re.sub(r"^(CONTAINER\.resources)\.(limits|requests)", r"\1.AMOUNT", path)
    for pattern, key in table:
        if path == pattern or path.startswith(f"{pattern}."):
            rest = path[len(pattern) :]
            return key + (rest.removesuffix(".name") if key == "cluster.image_pull_secrets" else rest)
    return None


def _joined_labels(parts: tuple[str, ...]) -> tuple[str, ...]:
    """A path without brackets cuts `nvidia.com/gpu` in two: joined again at the slash."""
    joined: list[str] = []
    for part in parts:
        if "/" in part and joined and "/" not in joined[-1] and re.fullmatch(r"[a-z]+/.*", part):
            joined[-1] = f"{joined[-1]}.{part}"
        else:
            joined.append(part)
    return tuple(joined)


def _member(items: Any, index: str, key: str, default: Any = None) -> Any:
    """The list's member by its number or its name."""
    if not isinstance(items, list):
        return default
    if index.isdigit() and int(index) < len(items):
        return items[int(index)]
    return next((item for item in items if isinstance(item, dict) and item.get(key) == index), default)


def _same(item: Any, template: Any, key: str) -> bool:
    if isinstance(item, dict) and isinstance(template, dict) and key in item:
        return bool(item[key] == template.get(key))
    return bool(item == template)
