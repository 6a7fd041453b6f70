"""One pod in words: what a real cluster is hard to bring to. The rest is in test_status.py."""

from datetime import UTC, datetime
from typing import Any

import pytest

from cpmbee_job.launch.kube.protocol import Object
from cpmbee_job.launch.runs.pods import PodStatus, describe_pod, is_silent

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def pod(container: dict[str, Any] | None = None, **status: Any) -> Object:
    """A pod on node-1; `container`: the state of its only one."""
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
    ("said", "words"),
    [
        (
            "0/3 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: present}, 2 Insufficient "
            "nvidia.com/gpu. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.",
            "no node takes it (0 of 3): 1 has the taint nvidia.com/gpu=present (cluster.tolerations), "
            "2 lack nvidia.com/gpu (8 asked for, workers.gpus)",
        ),
        (
            "0/2 nodes are available: 2 node(s) had untolerated taint(s) {node.kubernetes.io/not-ready: }.",
            "no node takes it (0 of 2): 2 have the taint node.kubernetes.io/not-ready (cluster.tolerations)",
        ),
        (
            "0/4 nodes are available: 1 Too many pods, 1 node(s) were unschedulable, 2 node(s) had a conflict.",
            "no node takes it (0 of 4): 1 has as many pods as it may, 1 is cordoned, 2 had a conflict",
        ),
        ("no nodes available to schedule pods", "no node takes it: no nodes available to schedule pods"),
        ("", "no node takes it"),
    ],
)
def test_the_schedulers_words_are_taken_apart(said: str, words: str) -> None:
    assert described(unschedulable(said)).reason == words


def test_affinity_is_named_where_no_node_matches() -> None:
    said = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    item = unschedulable(said, affinity={"nodeAffinity": {"x": 1}})
    assert described(item).reason == "no node takes it (0 of 1): 1 lacks what cluster.affinity says"


def test_a_gated_pod_names_its_gates() -> None:
    item = unschedulable("", schedulingGates=[{"name": "kueue.x-k8s.io/admission"}])
    item["status"]["conditions"][0]["reason"] = "SchedulingGated"
    assert described(item).reason == "held back by kueue.x-k8s.io/admission"


@pytest.mark.parametrize(
    ("said", "end"),
    [
        ("pull access denied, repository does not exist or may require authorization: server message: "
         "insufficient_scope: authorization failed", "authorization failed (a private registry needs "
         "cluster.image_pull_secrets)"),
        ("failed to resolve reference \"registry.example/a:1\": registry.example/a:1: not found",
         "can't be pulled: not found (check `image`)"),
    ],
)  # fmt: skip
def test_a_registrys_refusal_comes_with_the_mend(said: str, end: str) -> None:
    message = f'rpc error: code = NotFound desc = failed to pull and unpack image "registry.example/a:1": {said}'
    reason = described(pod(waiting("ErrImagePull", message), phase="Pending")).reason
    assert str(reason).endswith(end)


def test_an_older_kubelets_back_off_is_explained_by_the_event() -> None:
    item = pod(waiting("ImagePullBackOff", 'Back-off pulling image "registry.example/a:1"'), phase="Pending")
    message = 'Failed to pull image "registry.example/a:1": rpc error: code = Unknown desc = manifest unknown'
    assert str(described(item, {"reason": "Failed", "message": message}).reason).endswith(
        ": manifest unknown (check `image`)"
    )


def test_the_next_start_of_a_crash_loop_is_told() -> None:
    last = {"terminated": {"exitCode": 4, "finishedAt": "2026-01-31T11:59:00Z", "message": "error: no bucket"}}
    loop = waiting("CrashLoopBackOff", "back-off 1m20s restarting failed container=pytorch", lastState=last)
    status = described(pod(loop | {"restartCount": 4}))
    assert (status.state, status.cause, status.restarts) == ("restarting", "crash", 4)
    assert status.reason == "training failed with exit code 4: error: no bucket; start 6 in 20 s"


def test_a_pod_that_runs_again_tells_why_it_had_ended() -> None:
    last = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    status = described(pod({"state": {"running": {}}, "lastState": last, "restartCount": 1}))
    assert (status.state, status.cause) == ("running", None)
    assert status.reason == "started again after: training was killed: out of memory"


def test_only_the_last_lines_are_told() -> None:
    message = "\n".join(["\x1b[31mfirst\x1b[0m", "a", "", "b", "c" * 1000])
    reason = str(described(pod(ended(1, message))).reason)
    assert reason.startswith("training failed with exit code 1: a | b | ccc")
    assert len(reason) < 400


def test_a_kill_is_told_by_its_signal() -> None:
    assert described(pod(ended(143))).reason == "training was ended by SIGTERM"
    assert described(pod(ended(137))).reason == "training was ended by SIGKILL, as the kernel does when memory runs out"


def test_our_own_words_about_memory_are_believed() -> None:
    status = described(pod(ended(1, "error: out of memory: a worker was killed by the kernel")))
    assert (status.cause, status.reason) == (
        "memory",
        "training failed with exit code 1: error: out of memory: a worker was killed by the kernel",
    )


def test_a_node_that_stopped_answering_is_seen_by_the_pods_readiness() -> None:
    conditions = [{"type": "Ready", "status": "False"}]
    item = pod({"ready": True, "state": {"running": {}}}, conditions=conditions)
    assert is_silent(item)
    status = described(item, node_1="not ready since 11:00: kubelet stopped posting node status.")
    assert (status.state, status.cause) == ("lost", "node")
    assert str(status.reason).startswith("its node node-1 does not answer: not ready since")


def test_an_unknown_pod_is_lost_with_its_node() -> None:
    assert described(pod(phase="Unknown")).reason == "its node node-1 does not answer"


@pytest.mark.parametrize(
    ("target", "cause", "words"),
    [
        ("PreemptionByScheduler", "preempted", "preempted by a pod of higher priority: words"),
        ("DeletionByTaintManager", "node", "its node node-1 was lost or drained: words"),
        ("EvictionByEvictionAPI", "evicted", "evicted from node-1, as a drain does: words"),
        ("DeletionByPodGC", "node", "its node node-1 is gone: words"),
        ("TerminationByKubelet", "evicted", "ended by its node: words"),
    ],
)
def test_who_ends_a_pod_is_told(target: str, cause: str, words: str) -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": target, "message": "words"}
    status = described(pod(ended(137), phase="Failed", conditions=[condition]))
    assert (status.state, status.cause, status.reason) == ("failed", cause, words)


def test_an_eviction_keeps_the_nodes_words() -> None:
    status = described(pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory."))
    assert (status.cause, status.reason) == ("evicted", "evicted by its node: The node was low on resource: memory.")


@pytest.mark.parametrize(("leaves_by", "state"), [("12:00:10", "ending"), ("11:58:00", "lost")])
def test_a_pod_that_is_deleted_is_ending_while_its_node_may_still_do_it(leaves_by: str, state: str) -> None:
    item = pod({"ready": True, "state": {"running": {}}}, conditions=[{"type": "Ready", "status": "False"}])
    item["metadata"]["deletionTimestamp"] = f"2026-01-31T{leaves_by}Z"
    assert described(item).state == state


def test_a_sidecar_among_the_init_containers_is_not_the_init_step() -> None:
    item = pod({"state": {"running": {}}})
    item["spec"]["initContainers"] = [{"name": "proxy", "restartPolicy": "Always"}]
    item["status"]["initContainerStatuses"] = [{"name": "proxy", "state": {"running": {}}}]
    assert described(item).state == "running"


def test_a_sandbox_that_can_not_be_made_is_the_nodes_fault() -> None:
    item = pod(waiting("ContainerCreating"), phase="Pending")
    event = {"reason": "FailedCreatePodSandBox", "message": "failed to set up network:\n no IP left"}
    assert described(item, event).reason == "the node can't start it: failed to set up network: no IP left"


def test_a_mount_that_failed_long_ago_is_no_reason_any_more() -> None:
    item = pod(waiting("ContainerCreating"), phase="Pending")
    event = {"reason": "FailedMount", "message": "x", "lastTimestamp": "2026-01-31T11:50:00Z"}
    assert described(item, event).cause == "waiting"


def test_a_slow_start_names_the_image() -> None:
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-31T11:55:00Z"}
    item = pod(waiting("ContainerCreating"), phase="Pending", conditions=[scheduled])
    assert described(item).reason == "pulls registry.example/a:1, or sets up volumes and network"
