"""Which nodes may take a pod, whatever room they have."""

import pytest

from cpmbee_job.launch.checks.placement import refusal

TAINT = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}


def node(*, labels=(), taints=(), ready="True"):
    return {
        "metadata": {"name": "n", "labels": dict(labels)},
        "spec": {"taints": list(taints)},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }


def required(*expressions):
    terms = {"nodeSelectorTerms": [{"matchExpressions": list(expressions)}]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}


def test_a_plain_pod_may_run_on_a_ready_node():
    assert refusal(node(), {}) is None


def test_a_node_that_is_not_ready_takes_nothing():
    assert refusal(node(ready="Unknown"), {}) == "not ready"


def test_a_missing_label_is_named():
    assert refusal(node(labels={"zone": "a"}), {"nodeSelector": {"zone": "b"}}) == "without the label zone=b"


def test_a_cordoned_node_is_called_so():
    taint = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    assert refusal(node(taints=[taint]), {}) == "cordoned"


@pytest.mark.parametrize(
    "toleration",
    [
        {"key": "gpu", "value": "yes"},
        {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"operator": "Exists"},
    ],
)
def test_a_taint_may_be_tolerated(toleration):
    assert refusal(node(taints=[TAINT]), {"tolerations": [toleration]}) is None


@pytest.mark.parametrize("toleration", [{"key": "gpu", "value": "no"}, {"operator": "Exists", "effect": "NoExecute"}])
def test_another_toleration_does_not_help(toleration):
    assert "gpu=yes:NoSchedule" in str(refusal(node(taints=[TAINT]), {"tolerations": [toleration]}))


def test_a_preference_keeps_no_pod_away():
    assert refusal(node(taints=[{**TAINT, "effect": "PreferNoSchedule"}]), {}) is None


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ({"key": "zone", "operator": "In", "values": ["a", "b"]}, True),
        ({"key": "zone", "operator": "NotIn", "values": ["a"]}, False),
        ({"key": "disk", "operator": "DoesNotExist"}, True),
        ({"key": "disk", "operator": "Exists"}, False),
        ({"key": "size", "operator": "Gt", "values": ["3"]}, True),
        ({"key": "zone", "operator": "Lt", "values": ["3"]}, False),
    ],
)
def test_required_affinity_counts(expression, fits):
    found = refusal(node(labels={"zone": "a", "size": "4"}), required(expression))
    assert (found is None) is fits
