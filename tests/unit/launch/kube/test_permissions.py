"""The rights that verbs need, as rules of a Role."""

from cpmbee_job.launch.kube.permissions import PERMISSIONS, Permission, rules


def test_the_verbs_of_a_resource_make_one_rule():
    asked = [
        Permission(("submit",), "kubeflow.org", "pytorchjobs", ("create", "get")),
        Permission(("cancel",), "kubeflow.org", "pytorchjobs", ("get", "delete")),
    ]
    assert rules(asked) == [
        {"apiGroups": ["kubeflow.org"], "resources": ["pytorchjobs"], "verbs": ["create", "get", "delete"]}
    ]


def test_nobody_needs_to_read_secrets():
    assert not any(permission.resource == "secrets" for permission in PERMISSIONS)
