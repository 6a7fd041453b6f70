"""What the doctor looks at in the cluster: its parts, this user's rights, and room for the job."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime

from cpmbee_job.errors import ClusterError, ConflictError, NotFoundError, RejectedError, UnreachableError
from cpmbee_job.launch.checks.capacity import NodeRoom, count_gpus, fit, node_rooms, nodes_in_words, quota_shortages
from cpmbee_job.launch.checks.findings import Finding, is_denied
from cpmbee_job.launch.kube.fields import condition, integer, is_true, name_of, part, parts, text
from cpmbee_job.launch.kube.permissions import PERMISSIONS, Permission
from cpmbee_job.launch.kube.protocol import (
    ACCESS_REVIEWS,
    DEPLOYMENTS,
    KUBEFLOW_VERSIONS,
    KUEUE_VERSIONS,
    LOCAL_QUEUES,
    NAMESPACES,
    NODES,
    PODS,
    PYTORCHJOBS,
    QUOTAS,
    Cluster,
    Object,
)

OPERATOR = "training-operator"
MOST_SKEW = 30.0
"""Seconds between two clocks from which on ages and signatures go wrong."""
_NO_OPERATOR = "install the Kubeflow training operator 1.9 (its v1 API, not Trainer v2)"


def check_cluster(cluster: Cluster) -> Iterator[Finding]:
    """Whether it answers and knows who asks, and what its clock says."""
    with suppress(NotFoundError):
        cluster.get(KUBEFLOW_VERSIONS, "v1")  # the version is told to anybody, this is not
    yield Finding("cluster", "ok", f"{cluster.address}, {cluster.server_version()}, namespace {cluster.namespace}")
    skew = abs((datetime.now(UTC) - cluster.server_time()).total_seconds())
    if skew > MOST_SKEW:
        yield Finding("clock", "warning", f"{skew:.0f} s apart from the cluster's", "set this machine's clock by NTP")


def check_operator(cluster: Cluster) -> Iterator[Finding]:
    """Whether PyTorchJobs are served, by which operator, and whether its webhook answers."""
    try:
        served = cluster.get(KUBEFLOW_VERSIONS, "v1")
    except NotFoundError:
        served = {}
    if not any(resource.get("name") == "pytorchjobs" for resource in parts(served, "resources")):
        yield Finding("PyTorchJob", "problem", "kubeflow.org/v1 pytorchjobs is not served here", _NO_OPERATOR)
        return
    yield Finding("PyTorchJob", "ok", "kubeflow.org/v1 pytorchjobs is served")
    yield _deployment(cluster)
    yield _webhook(cluster)


def check_permissions(cluster: Cluster, *, with_queue: bool) -> Iterator[Finding]:
    """What the verbs ask of the API, as access reviews allow it or not."""
    asked = [p for p in PERMISSIONS if with_queue or "kueue" not in p.group]
    lacking: dict[str, list[str]] = {}
    useless: dict[str, list[str]] = {}
    with ThreadPoolExecutor(8) as pool:
        pairs = [(permission, verb) for permission in asked for verb in permission.verbs]
        for (permission, verb), allowed in zip(pairs, pool.map(lambda p: _may(cluster, *p), pairs), strict=True):
            if not allowed:
                lacking.setdefault(permission.resource, []).append(verb)
                useless.setdefault(permission.resource, []).extend(permission.commands)
    if not lacking:
        yield Finding("permissions", "ok", f"all that the verbs need in {cluster.namespace}")
    for resource, verbs in lacking.items():
        is_essential = resource == "pytorchjobs" and ("create" in verbs or "get" in verbs)
        commands = ", ".join(dict.fromkeys(useless[resource]))
        yield Finding(
            "permissions",
            "problem" if is_essential else "warning",
            f"may not {', '.join(verbs)} {resource} in {cluster.namespace}; these do not work in full: {commands}",
            "ask for the Role of k8s/ to be bound to you",
        )


def check_namespace(cluster: Cluster) -> Iterator[Finding]:
    try:
        found = cluster.get(NAMESPACES, cluster.namespace)
    except NotFoundError:
        hint = f"kubectl create namespace {cluster.namespace}, or name another one"
        yield Finding("namespace", "problem", f"there is no namespace {cluster.namespace}", hint)
        return
    if text(found, "status", "phase") == "Terminating":
        yield Finding("namespace", "problem", f"{cluster.namespace} is being deleted", "name another one")
        return
    level = (found["metadata"].get("labels") or {}).get("pod-security.kubernetes.io/enforce")
    words = f"enforces Pod Security '{level}', which the pods meet" if level else "enforces no Pod Security level"
    yield Finding("namespace", "ok", f"{cluster.namespace} {words}")


def check_quotas(cluster: Cluster, pod_spec: Object | None, count: int) -> Iterator[Finding]:
    """What ResourceQuotas leave; with a pod, whether `count` of them fit."""
    quotas = list(cluster.list(QUOTAS))
    if not quotas:
        yield Finding("quota", "ok", f"none in {cluster.namespace}")
    for quota in quotas:
        hard, used = part(quota, "status", "hard"), part(quota, "status", "used")
        state = ", ".join(f"{key} {used.get(key, 0)} of {value}" for key, value in hard.items())
        shortages = quota_shortages(quota, pod_spec, count) if pod_spec else []
        if shortages:
            hint = "ask for less (workers), wait for other jobs' end, or have the quota raised"
            yield Finding("quota", "problem", f"{name_of(quota)}: {'; '.join(shortages)}", hint)
        else:
            yield Finding("quota", "ok", f"{name_of(quota)}: used {state}")


def check_queue(cluster: Cluster, queue: str | None) -> Iterator[Finding]:
    """Kueue, and the LocalQueue that the spec names."""
    try:
        cluster.get(KUEUE_VERSIONS, "v1beta1")
    except NotFoundError:
        if queue is None:
            yield Finding("Kueue", "ok", "not installed, and not asked for")
        else:
            hint = "install Kueue, or leave cluster.queue out"
            words = f"kueue.x-k8s.io/v1beta1 is not served, so nothing would start a job of queue {queue}"
            yield Finding("Kueue", "problem", words, hint)
        return
    if queue is None:
        yield Finding("Kueue", "ok", "installed; the spec names no queue")
        return
    try:
        found = cluster.get(LOCAL_QUEUES, queue)
    except NotFoundError:
        hint = f"cluster.queue names one of `kubectl get localqueues -n {cluster.namespace}`"
        yield Finding("Kueue", "problem", f"there is no LocalQueue {queue} in {cluster.namespace}", hint)
        return
    if not is_true(found, "Active"):
        why = text(condition(found, "Active"), "message") or "it does not say why"
        yield Finding("Kueue", "problem", f"the LocalQueue {queue} is not active: {why}", "ask who runs the queues")
        return
    waiting = integer(found, "status", "pendingWorkloads") or 0
    yield Finding("Kueue", "ok", f"the LocalQueue {queue} is active, {waiting} jobs wait in it")


def check_nodes(cluster: Cluster, pod_spec: Object | None, count: int, gpu_resource: str) -> Iterator[Finding]:
    """GPUs by product; with a pod, how many of it find room."""
    nodes = list(cluster.list(NODES))
    seen = True
    try:
        running = cluster.list(PODS, fields="status.phase!=Succeeded,status.phase!=Failed", all_namespaces=True)
        rooms = node_rooms(nodes, running)
    except ClusterError as error:
        if not is_denied(error):
            raise
        seen, rooms = False, node_rooms(nodes, ())
        yield Finding("pods", "not_permitted", f"what is free of the nodes can't be told: {error.message}")
    yield _gpus(rooms, gpu_resource, wanted=bool(_asks_for(pod_spec, gpu_resource)), seen=seen)
    if pod_spec is not None:
        yield _room(rooms, pod_spec, count, seen=seen)


def _deployment(cluster: Cluster) -> Finding:
    try:
        found = [d for d in cluster.list(DEPLOYMENTS, all_namespaces=True) if OPERATOR in _images(d) + name_of(d)]
    except ClusterError as error:
        if not is_denied(error):
            raise
        return Finding("operator", "not_permitted", f"which one it is can't be told: {error.message}")
    if not found:
        return Finding(
            "operator", "warning", "no Deployment of a training operator; jobs stay as they are without", _NO_OPERATOR
        )
    deployment = found[0]
    place = f"{text(deployment, 'metadata', 'namespace')}/{name_of(deployment)}, {_images(deployment)}"
    if not integer(deployment, "status", "readyReplicas"):
        hint = f"kubectl -n {text(deployment, 'metadata', 'namespace')} describe deployment {name_of(deployment)}"
        return Finding("operator", "problem", f"{place}: not ready", hint)
    return Finding("operator", "ok", f"{place}: ready")


def _webhook(cluster: Cluster) -> Finding:
    """Asked about a job that only the webhook refuses: it has no container named `pytorch`."""
    template = {"spec": {"containers": [{"name": "doctor", "image": "doctor:1"}]}}
    job = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "cpmbee-job-doctor"},
        "spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": 1, "template": template}}},
    }
    try:
        cluster.create(PYTORCHJOBS, job, dry_run=True)
    except UnreachableError as error:
        if "failed calling webhook" not in error.message:
            raise
        hint = "see whether the operator's pod runs, and whether the API server reaches its Service"
        return Finding("webhook", "problem", error.message, hint)
    except (ClusterError, RejectedError, ConflictError, NotFoundError) as error:
        if "denied the request" in error.message:
            return Finding("webhook", "ok", "the operator's webhook answers")
        if is_denied(error):
            return Finding("webhook", "not_permitted", error.message)
        return Finding("webhook", "warning", f"whether it answers can't be told: {error.message}")
    return Finding("webhook", "warning", "no webhook checks PyTorchJobs, so mistakes show late", _NO_OPERATOR)


def _may(cluster: Cluster, permission: Permission, verb: str) -> bool:
    resource, _, subresource = permission.resource.partition("/")
    attributes = {"namespace": cluster.namespace, "verb": verb, "group": permission.group, "resource": resource}
    if subresource:
        attributes["subresource"] = subresource
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "metadata": {},
        "spec": {"resourceAttributes": attributes},
    }
    return part(cluster.create(ACCESS_REVIEWS, review), "status").get("allowed") is True


def _gpus(rooms: Sequence[NodeRoom], resource: str, *, wanted: bool, seen: bool) -> Finding:
    counts = count_gpus(rooms, resource)
    if not counts and wanted:
        hint = "install the GPUs' device plugin, or mend workers.gpu_resource"
        return Finding("GPUs", "problem", f"{nodes_in_words(len(rooms))}, none with {resource}", hint)
    if not counts:
        return Finding("GPUs", "ok", f"{nodes_in_words(len(rooms))}, none with {resource}, and none asked for")
    words = [
        f"{gpus.product}: {f'{gpus.free} free of ' if seen else ''}{gpus.total} on {nodes_in_words(gpus.nodes)}"
        for gpus in counts
    ]
    return Finding("GPUs", "ok", "; ".join(words))


def _room(rooms: Sequence[NodeRoom], pod_spec: Object, count: int, *, seen: bool) -> Finding:
    found = fit(rooms, pod_spec)
    why = f" ({'; '.join(found.obstacles)})" if found.obstacles else ""
    if found.ever == 0:
        hint = "ask for less (workers), or mend cluster.node_selector, workers.gpu_product, cluster.tolerations"
        return Finding("room", "problem", f"no node can take a pod of the job{why}", hint)
    if found.ever < count:
        hint = "fewer or smaller workers (workers.count), unless the cluster grows by itself"
        return Finding("room", "warning", f"{found.ever} of {count} pods fit, were all nodes empty{why}", hint)
    if seen and found.now < count:
        return Finding("room", "warning", f"{found.now} of {count} pods fit now; the others wait until others end")
    return Finding("room", "ok", f"{count} pods fit" + ("" if seen else ", were all nodes empty"))


def _asks_for(pod_spec: Object | None, resource: str) -> bool:
    return any(part(c, "resources", "limits").get(resource) for c in parts(pod_spec, "containers"))


def _images(deployment: Object) -> str:
    return ", ".join(text(c, "image") for c in parts(deployment, "spec", "template", "spec", "containers"))
