"""Requests of pods are compared with what nodes and quotas have left."""

from decimal import Decimal

import pytest

from cpmbee_job.launch.checks.capacity import count_gpus, fit, node_rooms, obstacle, pod_amounts, quota_shortages

GPU = "nvidia.com/gpu"
TAINT = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}


def container(**resources):
    amounts = {name.replace("gpu", GPU): str(amount) for name, amount in resources.items()}
    return {"name": "pytorch", "resources": {"limits": amounts, "requests": amounts}}


def pod(node=None, **resources):
    spec = {"containers": [container(**resources)]}
    return {
        "metadata": {"name": "p"},
        "spec": spec | ({"nodeName": node} if node else {}),
        "status": {"phase": "Running"},
    }


def node(name="n", *, labels=(), taints=(), ready="True", **allocatable):
    amounts = {key.replace("gpu", GPU): str(amount) for key, amount in {"pods": 10, **allocatable}.items()}
    return {
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {"taints": list(taints)},
        "status": {"allocatable": amounts, "conditions": [{"type": "Ready", "status": ready}]},
    }


def quota(hard, used=(), **spec):
    return {"metadata": {"name": "q"}, "spec": spec, "status": {"hard": hard, "used": dict(used)}}


def test_init_containers_run_before_the_others_so_the_larger_request_counts():
    spec = {"containers": [container(cpu=2), container(cpu=1)], "initContainers": [container(cpu=4, memory="1Gi")]}
    assert pod_amounts(spec) == {"cpu": 4, "memory": 2**30}


def test_a_sidecar_is_added_to_the_containers():
    spec = {"containers": [container(cpu=2)], "initContainers": [{**container(cpu=1), "restartPolicy": "Always"}]}
    assert pod_amounts(spec) == {"cpu": 3}


def test_counts_total_and_free_gpus_by_product():
    a100 = {"nvidia.com/gpu.product": "A100"}
    nodes = [node("a", gpu=8, labels=a100), node("b", gpu=8, labels=a100), node("c", gpu=2), node("d", cpu=4)]
    ended = {**pod("b", gpu=8), "status": {"phase": "Succeeded"}}
    counts = count_gpus(node_rooms(nodes, [pod("a", gpu=6), pod("elsewhere", gpu=1), ended]), GPU)
    assert [(c.product, c.nodes, c.total, c.free) for c in counts] == [("A100", 2, 16, 10), (GPU, 1, 2, 2)]


def test_pods_fit_where_every_resource_is_free():
    rooms = node_rooms([node("a", cpu=8, memory="8Gi")], [pod("a", cpu=1, memory="5Gi")])
    found = fit(rooms, pod(cpu=1, memory="1Gi")["spec"])
    assert (found.empty, found.now, found.obstacles) == (8, 3, ())


def test_names_the_obstacles_of_all_nodes():
    rooms = node_rooms([node("a", cpu=2), node("b", cpu=3), node("c", cpu=64, taints=[TAINT])], [])
    found = fit(rooms, pod(cpu=4)["spec"])
    assert found.empty == 0
    assert found.obstacles == (
        "1 node with untolerated taint gpu=yes:NoSchedule",
        "2 nodes with at most 3 cpu, a pod requests 4",
    )


def test_a_quota_is_compared_with_all_pods_together():
    left = quota({"requests.cpu": "8", "pods": "4"}, {"requests.cpu": "2", "pods": "0"})
    assert quota_shortages(left, pod(cpu=3)["spec"], 2) == []
    assert quota_shortages(left, pod(cpu=3)["spec"], 4) == [
        "requests.cpu: the job requests 12, 2 of 8 are used, so it can never fit"
    ]


def test_a_quota_may_limit_gpus():
    left = quota({f"requests.{GPU}": "8"}, {f"requests.{GPU}": "4"})
    assert quota_shortages(left, pod(gpu=8)["spec"], 1) == [f"requests.{GPU}: the job requests 8, 4 of 8 are used"]


def test_a_quota_with_another_scope_does_not_count():
    spec = pod(cpu=3)["spec"]
    assert quota_shortages(quota({"cpu": "1"}, scopes=["Terminating"]), spec, 1) == []
    urgent = {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["urgent"]}]}
    assert quota_shortages(quota({"cpu": "1"}, scopeSelector=urgent), spec, 1) == []
    assert quota_shortages(quota({"cpu": "1"}, scopeSelector=urgent), {**spec, "priorityClassName": "urgent"}, 1)


def test_quantities_are_exact():
    rooms = node_rooms([node("a", cpu="300m")], [])
    assert fit(rooms, pod(cpu="100m")["spec"]).empty == 3
    assert rooms[0].free["cpu"] == Decimal("0.3")


def test_a_ready_node_has_no_obstacle():
    assert obstacle(node(), {}) is None


def test_a_node_that_is_not_ready_runs_no_pod():
    assert obstacle(node(ready="Unknown"), {}) == "not ready"


def test_names_a_missing_label():
    assert obstacle(node(labels={"zone": "a"}), {"nodeSelector": {"zone": "b"}}) == "without label zone=b"


def test_names_a_cordoned_node():
    taint = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    assert obstacle(node(taints=[taint]), {}) == "cordoned"


@pytest.mark.parametrize(
    "toleration",
    [
        {"key": "gpu", "value": "yes"},
        {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"operator": "Exists"},
    ],
)
def test_a_taint_may_be_tolerated(toleration):
    assert obstacle(node(taints=[TAINT]), {"tolerations": [toleration]}) is None


@pytest.mark.parametrize("toleration", [{"key": "gpu", "value": "no"}, {"operator": "Exists", "effect": "NoExecute"}])
def test_a_toleration_of_another_taint_does_not_help(toleration):
    assert "gpu=yes:NoSchedule" in str(obstacle(node(taints=[TAINT]), {"tolerations": [toleration]}))


def test_a_preferred_taint_is_no_obstacle():
    assert obstacle(node(taints=[{**TAINT, "effect": "PreferNoSchedule"}]), {}) is None


def test_affinity_is_left_to_the_scheduler():
    required = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    assert obstacle(node(), {"affinity": affinity}) is None
