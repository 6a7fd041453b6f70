"""What pods ask for, and what nodes and quotas have left."""

from decimal import Decimal

from cpmbee_job.launch.checks.capacity import count_gpus, fit, node_rooms, pod_amounts, quota_shortages

GPU = "nvidia.com/gpu"


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


def node(name="n", *, labels=(), taints=(), **allocatable):
    amounts = {key.replace("gpu", GPU): str(amount) for key, amount in {"pods": 10, **allocatable}.items()}
    return {
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {"taints": list(taints)},
        "status": {"allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def quota(hard, used=(), **spec):
    return {"metadata": {"name": "q"}, "spec": spec, "status": {"hard": hard, "used": dict(used)}}


def test_init_steps_run_before_the_containers_so_the_larger_counts():
    spec = {"containers": [container(cpu=2), container(cpu=1)], "initContainers": [container(cpu=4, memory="1Gi")]}
    assert pod_amounts(spec) == {"cpu": 4, "memory": 2**30}


def test_a_sidecar_runs_beside_the_others():
    spec = {"containers": [container(cpu=2)], "initContainers": [{**container(cpu=1), "restartPolicy": "Always"}]}
    assert pod_amounts(spec) == {"cpu": 3}


def test_gpus_are_counted_by_product_without_those_in_use():
    a100 = {"nvidia.com/gpu.product": "A100"}
    nodes = [node("a", gpu=8, labels=a100), node("b", gpu=8, labels=a100), node("c", gpu=2), node("d", cpu=4)]
    ended = {**pod("b", gpu=8), "status": {"phase": "Succeeded"}}
    counts = count_gpus(node_rooms(nodes, [pod("a", gpu=6), pod("elsewhere", gpu=1), ended]), GPU)
    assert [(c.product, c.nodes, c.total, c.free) for c in counts] == [("A100", 2, 16, 10), (GPU, 1, 2, 2)]


def test_pods_fit_where_every_resource_is_left():
    rooms = node_rooms([node("a", cpu=8, memory="8Gi")], [pod("a", cpu=1, memory="5Gi")])
    found = fit(rooms, pod(cpu=1, memory="1Gi")["spec"])
    assert (found.ever, found.now, found.obstacles) == (8, 3, ())


def test_what_is_in_the_way_of_a_pod_is_told_of_all_nodes():
    taint = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
    rooms = node_rooms([node("a", cpu=2), node("b", cpu=3), node("c", cpu=64, taints=[taint])], [])
    found = fit(rooms, pod(cpu=4)["spec"])
    assert found.ever == 0
    assert found.obstacles == (
        "1 node with the taint gpu=yes:NoSchedule, which is not tolerated",
        "2 nodes of at most 3 cpu, where a pod asks for 4",
    )


def test_a_quota_is_compared_with_all_pods_together():
    left = quota({"requests.cpu": "8", "pods": "4"}, {"requests.cpu": "2", "pods": "0"})
    assert quota_shortages(left, pod(cpu=3)["spec"], 2) == []
    assert quota_shortages(left, pod(cpu=3)["spec"], 4) == [
        "requests.cpu: the job asks for 12, 2 of 8 are used, so it never fits"
    ]


def test_gpus_have_quotas_too():
    left = quota({f"requests.{GPU}": "8"}, {f"requests.{GPU}": "4"})
    assert quota_shortages(left, pod(gpu=8)["spec"], 1) == [f"requests.{GPU}: the job asks for 8, 4 of 8 are used"]


def test_a_quota_of_another_scope_does_not_count():
    spec = pod(cpu=3)["spec"]
    assert quota_shortages(quota({"cpu": "1"}, scopes=["Terminating"]), spec, 1) == []
    urgent = {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["urgent"]}]}
    assert quota_shortages(quota({"cpu": "1"}, scopeSelector=urgent), spec, 1) == []
    assert quota_shortages(quota({"cpu": "1"}, scopeSelector=urgent), {**spec, "priorityClassName": "urgent"}, 1)


def test_numbers_are_exact():
    rooms = node_rooms([node("a", cpu="300m")], [])
    assert fit(rooms, pod(cpu="100m")["spec"]).ever == 3
    assert rooms[0].free["cpu"] == Decimal("0.3")
