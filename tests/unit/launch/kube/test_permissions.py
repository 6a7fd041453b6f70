"""The permissions of our commands as rules of a Role, compared with the calls in the launcher's source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import cpmbee_job.launch
from cpmbee_job.launch.kube import protocol
from cpmbee_job.launch.kube.permissions import CLUSTER_PERMISSIONS, OPTIONAL_PERMISSIONS, PERMISSIONS, Permission, rules

KINDS = {name: kind for name, kind in vars(protocol).items() if str(kind).startswith(("api/", "apis/"))}
OF_ALL = {"ACCESS_REVIEWS", "KUBEFLOW_VERSIONS", "KUEUE_VERSIONS"}
"""These require no permission."""
NEVER_ALLOWED = {"SECRETS"}
"""`doctor` works without it."""
VERBS = {"get": ("get",), "get_metadata": ("get",), "list": ("list",), "watch": ("list", "watch")}
VERBS |= {"create": ("create",), "delete": ("delete",)}
Ask = tuple[str, str, bool]
"""(RBAC verb, name of the kind, whether in all namespaces)."""


def called(part: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Calls with the name of the function."""
    for node in ast.walk(part):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            yield node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id, node


def names(call: ast.Call) -> set[str]:
    """The names among its arguments, also as attributes of a module."""
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    return {ast.unparse(value).rpartition(".")[2] for value in given if isinstance(value, ast.Name | ast.Attribute)}


def asked(modules: list[ast.Module]) -> set[Ask]:
    """The requests to the API, including those of functions with a parameter `kind`."""
    helpers = {
        one.name: one
        for module in modules
        for one in ast.walk(module)
        if isinstance(one, ast.FunctionDef)
        and one.name not in VERBS
        and "kind" in {argument.arg for argument in [*one.args.args, *one.args.kwonlyargs]}
    }

    def verbs(name: str, call: ast.Call) -> set[str]:
        if name in VERBS and isinstance(call.func, ast.Attribute):
            return set(VERBS[name]) if ast.unparse(call.func.value).endswith("cluster") else set()
        inner = called(helpers[name]) if name in helpers else ()
        return {verb for other, one in inner if "kind" in names(one) for verb in verbs(other, one)}

    found: set[Ask] = set()
    for module in modules:
        for name, call in called(module):
            everywhere = any(keyword.arg == "all_namespaces" for keyword in call.keywords)
            kinds = names(call) & KINDS.keys()
            if not kinds and name in helpers:
                defaults = [*helpers[name].args.defaults, *helpers[name].args.kw_defaults]
                kinds = {one.id for one in defaults if isinstance(one, ast.Name)} & KINDS.keys()
            found |= {(verb, kind, everywhere) for verb in verbs(name, call) for kind in kinds}
            if name == "logs" and ast.unparse(call.func).endswith("cluster.logs"):
                found.add(("get", "LOGS", False))
    return found


def resource(kind: str) -> tuple[str, str]:
    """The group and the resource in RBAC."""
    if kind == "LOGS":
        return "", "pods/log"
    _, *group, _, plural = KINDS[kind].split("/")
    return "".join(group), plural


def allowed(*permissions: Permission) -> set[tuple[str, str, str]]:
    return {(one.group, one.resource, verb) for one in permissions for verb in one.verbs}


def test_the_verbs_of_a_resource_are_in_one_rule():
    asked = [
        Permission(("submit",), "kubeflow.org", "pytorchjobs", ("create", "get")),
        Permission(("cancel",), "kubeflow.org", "pytorchjobs", ("get", "delete")),
    ]
    assert rules(asked) == [
        {"apiGroups": ["kubeflow.org"], "resources": ["pytorchjobs"], "verbs": ["create", "get", "delete"]}
    ]


def test_no_command_requires_secrets():
    assert not any(permission.resource == "secrets" for permission in PERMISSIONS)


def test_the_roles_allow_exactly_the_calls_in_the_source():
    folder = Path(cpmbee_job.launch.__path__[0])
    sources = [path for path in folder.rglob("*.py") if path.parent.name != "kube" or path.name == "protocol.py"]
    modules = [ast.parse(path.read_text()) for path in sources]
    in_namespace, in_cluster = set(), set()
    for verb, kind, everywhere in asked(modules):
        if kind not in OF_ALL | NEVER_ALLOWED:
            (in_cluster if everywhere or kind == "NODES" else in_namespace).add((*resource(kind), verb))
    assert in_namespace == allowed(*PERMISSIONS, *OPTIONAL_PERMISSIONS)
    assert in_cluster == allowed(*CLUSTER_PERMISSIONS)
