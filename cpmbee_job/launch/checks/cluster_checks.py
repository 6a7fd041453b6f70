"""Checks of `doctor` in the cluster: its components, this user's permissions, and room for the job."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from cpmbee_job.errors import ClusterError, ConflictError, NotFoundError, RejectedError, UnreachableError
from cpmbee_job.launch.checks.capacity import NodeRoom, count_gpus, count_nodes, fit, node_rooms, quota_shortages
from cpmbee_job.launch.checks.check_result import CheckResult, is_denied, list_permitted
from cpmbee_job.launch.kube import protocol as kube
from cpmbee_job.launch.kube.fields import condition, integer, is_true, name_of, object_at, objects_at, text_at
from cpmbee_job.launch.kube.permissions import PERMISSIONS, Permission
from cpmbee_job.launch.kube.protocol import Cluster, Object, get_or_none

_INSTALL = "install the Kubeflow training operator 1.9 (its v1 API, not Trainer v2)"


def check_cluster(cluster: Cluster) -> Iterator[CheckResult]:
    """Check that the API server answers and authenticates this user, and compare the clocks."""
    get_or_none(cluster, kube.KUBEFLOW_VERSIONS, "v1")  # requires authentication, which the version does not
    yield CheckResult("cluster", "ok", f"{cluster.address}, {cluster.server_version()}, namespace {cluster.namespace}")
    skew = abs((datetime.now(UTC) - cluster.server_time()).total_seconds())
    if skew > 30.0:  # ages and signatures become wrong
        detail = f"differs from the cluster's clock by {skew:.0f} s"
        yield CheckResult("clock", "warning", detail, "synchronize this machine's clock with NTP")


def check_operator(cluster: Cluster) -> Iterator[CheckResult]:
    """Check that PyTorchJobs are served, that the operator is ready, and that its webhook answers."""
    served = get_or_none(cluster, kube.KUBEFLOW_VERSIONS, "v1")
    if not any(resource.get("name") == "pytorchjobs" for resource in objects_at(served, "resources")):
        yield CheckResult("PyTorchJob", "problem", "kubeflow.org/v1 pytorchjobs is not served", _INSTALL)
        return
    yield CheckResult("PyTorchJob", "ok", "kubeflow.org/v1 pytorchjobs is served")
    yield _check_deployment(cluster)
    yield _check_webhook(cluster)


def check_permissions(cluster: Cluster, *, with_queue: bool) -> Iterator[CheckResult]:
    """Check by access reviews the permissions that the commands require."""
    asked = [
        (permission, verb)
        for permission in PERMISSIONS
        for verb in permission.verbs
        if with_queue or "kueue" not in permission.group
    ]
    with ThreadPoolExecutor(8) as pool:
        allowed = list(pool.map(lambda one: _is_allowed(cluster, *one), asked))
    denied: dict[str, list[str]] = {}
    commands: dict[str, list[str]] = {}
    for (permission, verb), is_allowed in zip(asked, allowed, strict=True):
        if not is_allowed:
            denied.setdefault(permission.resource, []).append(verb)
            commands.setdefault(permission.resource, []).extend(permission.commands)
    if not denied:
        yield CheckResult("permissions", "ok", f"all that the commands require in {cluster.namespace}")
    for resource, verbs in denied.items():
        is_essential = resource == "pytorchjobs" and ("create" in verbs or "get" in verbs)
        limited = ", ".join(dict.fromkeys(commands[resource]))
        yield CheckResult(
            "permissions",
            "problem" if is_essential else "warning",
            f"cannot {', '.join(verbs)} {resource} in {cluster.namespace}; this limits the commands {limited}",
            "ask a cluster administrator to bind the Role of k8s/ to you",
        )


def check_namespace(cluster: Cluster) -> list[CheckResult]:
    """Check that the namespace exists."""
    name = cluster.namespace
    found = get_or_none(cluster, kube.NAMESPACES, name)
    if found is None:
        hint = f"kubectl create namespace {name}, or use another one"
        return [CheckResult("namespace", "problem", f"{name} does not exist", hint)]
    if text_at(found, "status", "phase") == "Terminating":
        return [CheckResult("namespace", "problem", f"{name} is Terminating", "use another one")]
    level = text_at(found, "metadata", "labels", "pod-security.kubernetes.io/enforce")
    enforced = f"Pod Security '{level}', which the pods meet" if level else "no Pod Security level"
    return [CheckResult("namespace", "ok", f"{name} enforces {enforced}")]


def check_quotas(cluster: Cluster, pod_spec: Object | None, count: int) -> Iterator[CheckResult]:
    """Show what ResourceQuotas leave. With a pod spec, check that `count` such pods fit."""
    quotas = list(cluster.list(kube.QUOTAS))
    if not quotas:
        yield CheckResult("quota", "ok", f"none in {cluster.namespace}")
    for quota in quotas:
        hard, used = object_at(quota, "status", "hard"), object_at(quota, "status", "used")
        shortages = quota_shortages(quota, pod_spec, count) if pod_spec else []
        if shortages:
            hint = "request less (workers), wait for other jobs to end, or ask for a higher quota"
            yield CheckResult("quota", "problem", f"{name_of(quota)}: {'; '.join(shortages)}", hint)
        else:
            state = ", ".join(f"{key} {used.get(key, 0)} of {value}" for key, value in hard.items())
            yield CheckResult("quota", "ok", f"{name_of(quota)}: used {state}")


def check_queue(cluster: Cluster, queue: str | None) -> list[CheckResult]:
    """Check Kueue and the LocalQueue that the spec names."""
    is_installed = get_or_none(cluster, kube.KUEUE_VERSIONS, "v1beta1") is not None
    if queue is None:
        detail = "installed; the spec names no queue" if is_installed else "not installed, not required"
        return [CheckResult("Kueue", "ok", detail)]
    if not is_installed:
        detail = f"kueue.x-k8s.io/v1beta1 is not served, so a job of queue {queue} would never start"
        return [CheckResult("Kueue", "problem", detail, "install Kueue, or remove cluster.queue")]
    found = get_or_none(cluster, kube.LOCAL_QUEUES, queue)
    if found is None:
        hint = f"set cluster.queue to one of `kubectl get localqueues -n {cluster.namespace}`"
        return [CheckResult("Kueue", "problem", f"LocalQueue {queue} does not exist in {cluster.namespace}", hint)]
    if not is_true(found, "Active"):
        why = text_at(condition(found, "Active"), "message") or "no reason given"
        detail = f"LocalQueue {queue} is not active: {why}"
        return [CheckResult("Kueue", "problem", detail, "ask the administrator of the queues")]
    waiting = integer(found, "status", "pendingWorkloads") or 0
    return [CheckResult("Kueue", "ok", f"LocalQueue {queue} is active, {waiting} jobs wait in it")]


def check_nodes(cluster: Cluster, pod_spec: Object | None, count: int, gpu_resource: str) -> Iterator[CheckResult]:
    """Count the GPUs by product. With a pod spec, check that `count` such pods fit on the nodes."""
    nodes = list(cluster.list(kube.NODES))
    active = "status.phase!=Succeeded,status.phase!=Failed"
    running, denial = list_permitted(cluster, kube.PODS, active, all_namespaces=True)
    rooms = node_rooms(nodes, running)
    if denial is not None:
        yield CheckResult("pods", "not_permitted", f"cannot tell what is free on the nodes: {denial}")
    yield _check_gpus(rooms, pod_spec, gpu_resource, pods_known=denial is None)
    if pod_spec is not None:
        yield _check_room(rooms, pod_spec, count, pods_known=denial is None)


def _check_deployment(cluster: Cluster) -> CheckResult:
    deployments, denial = list_permitted(cluster, kube.DEPLOYMENTS, all_namespaces=True)
    found = [each for each in deployments if "training-operator" in _images(each) + name_of(each)]
    if denial is not None:
        return CheckResult("operator", "not_permitted", f"cannot tell which one it is: {denial}")
    if not found:
        return CheckResult("operator", "warning", "no Deployment found; without it, jobs never start", _INSTALL)
    namespace, name = text_at(found[0], "metadata", "namespace"), name_of(found[0])
    detail = f"{namespace}/{name}, {_images(found[0])}"
    if not integer(found[0], "status", "readyReplicas"):
        hint = f"kubectl -n {namespace} describe deployment {name}"
        return CheckResult("operator", "problem", f"{detail}: not ready", hint)
    return CheckResult("operator", "ok", f"{detail}: ready")


def _check_webhook(cluster: Cluster) -> CheckResult:
    """Try a job that only the webhook refuses, because it has no container named `pytorch`."""
    template = {"spec": {"containers": [{"name": "doctor", "image": "doctor:1"}]}}
    job = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "cpmbee-job-doctor"},
        "spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": 1, "template": template}}},
    }
    try:
        cluster.create(kube.PYTORCHJOBS, job, dry_run=True)
    except UnreachableError as error:
        if "failed calling webhook" not in error.message:
            raise
        hint = "check that the operator's pod runs, and that the API server reaches its Service"
        return CheckResult("webhook", "problem", error.message, hint)
    except (ClusterError, RejectedError, ConflictError, NotFoundError) as error:
        if "denied the request" in error.message:
            return CheckResult("webhook", "ok", "the operator's webhook answers")
        if is_denied(error):
            return CheckResult("webhook", "not_permitted", error.message)
        return CheckResult("webhook", "warning", f"cannot tell whether it answers: {error.message}")
    return CheckResult("webhook", "warning", "no webhook validates PyTorchJobs, so errors show late", _INSTALL)


def _is_allowed(cluster: Cluster, permission: Permission, verb: str) -> bool:
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
    return object_at(cluster.create(kube.ACCESS_REVIEWS, review), "status").get("allowed") is True


def _check_gpus(rooms: Sequence[NodeRoom], pod_spec: Object | None, resource: str, *, pods_known: bool) -> CheckResult:
    found = [
        f"{gpus.product}: {f'{gpus.free} free of ' * pods_known}{gpus.total} on {count_nodes(gpus.nodes)}"
        for gpus in count_gpus(rooms, resource)
    ]
    if found:
        return CheckResult("GPUs", "ok", "; ".join(found))
    detail = f"{count_nodes(len(rooms))}, none with {resource}"
    if any(object_at(one, "resources", "limits").get(resource) for one in objects_at(pod_spec, "containers")):
        hint = "install the GPUs' device plugin, or correct workers.gpu_resource"
        return CheckResult("GPUs", "problem", detail, hint)
    return CheckResult("GPUs", "ok", f"{detail}, none requested")


def _check_room(rooms: Sequence[NodeRoom], pod_spec: Object, count: int, *, pods_known: bool) -> CheckResult:
    found = fit(rooms, pod_spec)
    why = f" ({'; '.join(found.obstacles)})" if found.obstacles else ""
    if found.empty == 0:
        hint = "request less (workers), or correct cluster.node_selector, workers.gpu_product, cluster.tolerations"
        return CheckResult("room", "problem", f"no node can run a pod of the job{why}", hint)
    if found.empty < count:
        hint = "use fewer or smaller workers (workers.count), unless the cluster scales automatically"
        return CheckResult("room", "warning", f"{found.empty} of {count} pods fit if all nodes are empty{why}", hint)
    if pods_known and found.now < count:
        return CheckResult("room", "warning", f"{found.now} of {count} pods fit now; the others wait for other jobs")
    return CheckResult("room", "ok", f"{count} pods fit" + ("" if pods_known else " if all nodes are empty"))


def _images(deployment: Object) -> str:
    return ", ".join(text_at(one, "image") for one in objects_at(deployment, "spec", "template", "spec", "containers"))
