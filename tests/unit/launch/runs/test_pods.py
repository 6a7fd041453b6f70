"""Descriptions of one pod in states that are hard to produce on a real cluster. test_status.py has the others."""

from datetime import UTC, datetime
from typing import Any

import pytest

from cpmbee_job.launch.kube.protocol import Object
from cpmbee_job.launch.runs.pods import PodStatus, describe_pod, is_silent

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def pod(container: dict[str, Any] | None = None, **status: Any) -> Object:
    """Return a pod on node-1. `container`: the status of its only container."""
    spec = {"nodeName": "node-1", "containers": [{"name": "pytorch", "image": "registry.example/a:1"}]}
    statuses = [{"name": "pytorch", "image": "registry.example/a:1", **(container or {})}]
    metadata = {"name": "a-worker-0", "labels": {"training.kubeflow.org/replica-index": "0"}}
    return {
        "metadata": metadata,
        "spec": spec,
        "status": {"phase": "Running", "containerStatuses": statuses, **status},
    }


def described(item: Object, *events: Object, **silent: str) -> PodStatus:
    return describe_pod(item, events, NOW, {name.replace("_", "-"): why for name, why in silent.items()})


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"state": {"waiting": {"reason": reason, "message": message}}, **more}


def ended(exit_code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"state": {"terminated": {"exitCode": exit_code, "reason": reason, "message": message}}}


def unschedulable(message: str, **spec: Any) -> Object:
    item = pod(phase="Pending")
    item["spec"] = {"containers": [{"name": "pytorch", "resources": {"limits": {"nvidia.com/gpu": "8"}}}], **spec}
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    item["status"] = {"phase": "Pending", "conditions": [condition]}
    return item


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "0/3 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: present}, 2 Insufficient "
            "nvidia.com/gpu. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.",
            "Unschedulable: 0/3 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: present} "
            "(cluster.tolerations), 2 Insufficient nvidia.com/gpu (8 requested, workers.gpus)",
        ),
        (
            "0/2 nodes are available: 2 node(s) had untolerated taint(s) {node.kubernetes.io/not-ready: }.",
            "Unschedulable: 0/2 nodes are available: 2 node(s) had untolerated taint(s) "
            "{node.kubernetes.io/not-ready: } (cluster.tolerations)",
        ),
        (
            "0/4 nodes are available: 1 Too many pods, 1 node(s) were unschedulable, 2 node(s) had a conflict.",
            "Unschedulable: 0/4 nodes are available: 1 Too many pods, 1 node(s) were unschedulable, "
            "2 node(s) had a conflict",
        ),
        ("no nodes available to schedule pods", "Unschedulable: no nodes available to schedule pods"),
        ("", "Unschedulable"),
    ],
)
def test_explains_the_message_of_the_scheduler(message: str, reason: str) -> None:
    assert described(unschedulable(message)).reason == reason


def test_names_an_affinity_that_no_node_matches() -> None:
    said = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    item = unschedulable(said, affinity={"nodeAffinity": {"x": 1}})
    assert described(item).reason == f"Unschedulable: {said[:-1]} (cluster.affinity)"


def test_names_the_scheduling_gates() -> None:
    item = unschedulable("", schedulingGates=[{"name": "kueue.x-k8s.io/admission"}])
    item["status"]["conditions"][0]["reason"] = "SchedulingGated"
    assert described(item).reason == "SchedulingGated by kueue.x-k8s.io/admission"


@pytest.mark.parametrize(
    ("error", "end"),
    [
        ("pull access denied, repository does not exist or may require authorization: server message: "
         "insufficient_scope: authorization failed", "authorization failed (a private registry requires "
         "cluster.image_pull_secrets)"),
        ("failed to resolve reference \"registry.example/a:1\": registry.example/a:1: not found",
         "(ImagePullBackOff): not found (check `image`)"),
    ],
)  # fmt: skip
def test_a_failed_pull_is_reported_with_a_hint(error: str, end: str) -> None:
    message = f'rpc error: code = NotFound desc = failed to pull and unpack image "registry.example/a:1": {error}'
    reason = described(pod(waiting("ErrImagePull", message), phase="Pending")).reason
    assert str(reason).endswith(end)


def test_explains_the_back_off_of_an_older_kubelet_by_the_event() -> None:
    item = pod(waiting("ImagePullBackOff", 'Back-off pulling image "registry.example/a:1"'), phase="Pending")
    message = 'Failed to pull image "registry.example/a:1": rpc error: code = Unknown desc = manifest unknown'
    assert str(described(item, {"reason": "Failed", "message": message}).reason).endswith(
        ": manifest unknown (check `image`)"
    )


def test_reports_the_next_restart_of_a_crash_loop() -> None:
    last = {"terminated": {"exitCode": 4, "finishedAt": "2026-01-31T11:59:00Z", "message": "error: no bucket"}}
    loop = waiting("CrashLoopBackOff", "back-off 1m20s restarting failed container=pytorch", lastState=last)
    status = described(pod(loop | {"restartCount": 4}))
    assert (status.state, status.cause, status.restarts) == ("restarting", "crash", 4)
    assert status.reason == "training failed with exit code 4: error: no bucket; CrashLoopBackOff, restart 5 in 20 s"


def test_a_restarted_pod_reports_why_it_ended() -> None:
    last = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    status = described(pod({"state": {"running": {}}, "lastState": last, "restartCount": 1}))
    assert (status.state, status.cause) == ("running", None)
    assert status.reason == "restarted after: training ran out of memory (OOMKilled)"


def test_shows_only_the_last_lines() -> None:
    message = "\n".join(["\x1b[31mfirst\x1b[0m", "a", "", "b", "c" * 1000])
    reason = str(described(pod(ended(1, message))).reason)
    assert reason.startswith("training failed with exit code 1: a | b | ccc")
    assert len(reason) < 400


def test_names_the_signal() -> None:
    assert described(pod(ended(143))).reason == "training was terminated by SIGTERM"
    assert described(pod(ended(137))).reason == "training was terminated by SIGKILL, possibly because memory ran out"


def test_a_message_of_the_program_about_memory_counts() -> None:
    status = described(pod(ended(1, "error: out of memory: a worker was killed by the kernel")))
    assert (status.cause, status.reason) == (
        "memory",
        "training failed with exit code 1: error: out of memory: a worker was killed by the kernel",
    )


def test_a_running_pod_that_is_not_ready_has_a_silent_node() -> None:
    conditions = [{"type": "Ready", "status": "False"}]
    item = pod({"ready": True, "state": {"running": {}}}, conditions=conditions)
    assert is_silent(item)
    status = described(item, node_1="not ready since 11:00: kubelet stopped posting node status.")
    assert (status.state, status.cause) == ("lost", "node")
    assert str(status.reason).startswith("node node-1 does not respond: not ready since")


def test_an_unknown_pod_is_lost_with_its_node() -> None:
    assert described(pod(phase="Unknown")).reason == "node node-1 does not respond"


@pytest.mark.parametrize(
    ("target", "cause", "reason"),
    [
        ("PreemptionByScheduler", "preempted", "preempted by a pod of higher priority (PreemptionByScheduler): detail"),
        ("DeletionByTaintManager", "node", "its node was lost or drained (DeletionByTaintManager): detail"),
        (
            "EvictionByEvictionAPI",
            "evicted",
            "evicted from its node, for example by a drain (EvictionByEvictionAPI): detail",
        ),
        ("DeletionByPodGC", "node", "its node is gone (DeletionByPodGC): detail"),
        ("TerminationByKubelet", "evicted", "terminated by its node (TerminationByKubelet): detail"),
    ],
)
def test_explains_a_disruption(target: str, cause: str, reason: str) -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": target, "message": "detail"}
    status = described(pod(ended(137), phase="Failed", conditions=[condition]))
    assert (status.state, status.cause, status.reason) == ("failed", cause, reason)


def test_shows_the_message_of_an_eviction() -> None:
    status = described(pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory."))
    assert (status.cause, status.reason) == ("evicted", "Evicted by its node: The node was low on resource: memory.")


@pytest.mark.parametrize(("leaves_by", "state"), [("12:00:10", "ending"), ("11:58:00", "lost")])
def test_a_terminating_pod_is_lost_when_it_is_overdue(leaves_by: str, state: str) -> None:
    item = pod({"ready": True, "state": {"running": {}}}, conditions=[{"type": "Ready", "status": "False"}])
    item["metadata"]["deletionTimestamp"] = f"2026-01-31T{leaves_by}Z"
    assert described(item).state == state


def test_a_sidecar_among_the_init_containers_is_not_the_init_step() -> None:
    item = pod({"state": {"running": {}}})
    item["spec"]["initContainers"] = [{"name": "proxy", "restartPolicy": "Always"}]
    item["status"]["initContainerStatuses"] = [{"name": "proxy", "state": {"running": {}}}]
    assert described(item).state == "running"


def test_a_failed_sandbox_is_a_problem_of_the_node() -> None:
    item = pod(waiting("ContainerCreating"), phase="Pending")
    event = {"reason": "FailedCreatePodSandBox", "message": "failed to set up network:\n no IP left"}
    assert (
        described(item, event).reason
        == "the node cannot start the pod (FailedCreatePodSandBox): failed to set up network: no IP left"
    )


def test_an_old_mount_failure_does_not_count() -> None:
    item = pod(waiting("ContainerCreating"), phase="Pending")
    event = {"reason": "FailedMount", "message": "x", "lastTimestamp": "2026-01-31T11:50:00Z"}
    assert described(item, event).cause == "waiting"


def test_a_slow_start_names_the_image() -> None:
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-31T11:55:00Z"}
    item = pod(waiting("ContainerCreating"), phase="Pending", conditions=[scheduled])
    assert described(item).reason == "pulling image registry.example/a:1, or setting up volumes and network"
