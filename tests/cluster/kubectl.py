"""`kubectl`, as the tests use it on whatever cluster KUBECONFIG names."""

import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def kubectl(*arguments: str, stdin: Any = None) -> str:
    """What it prints, given `stdin` as JSON. Fails with its words, or where a pod would not meet its namespace's
    standard (which is a warning only where a job makes the pod)."""
    text = None if stdin is None else json.dumps(stdin)
    done = subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    assert "violate" not in done.stderr
    return done.stdout


def apply(*objects: dict[str, Any]) -> None:
    kubectl("apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "List", "items": objects})


def get(*arguments: str) -> Any:
    return json.loads(kubectl("get", *arguments, "-o", "json"))


@contextmanager
def fresh_namespace(prefix: str) -> Iterator[str]:
    """A namespace that enforces the "restricted" standard, removed in the end."""
    name = f"{prefix}-{uuid.uuid4().hex[:6]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "cpmbee-job/test": "yes"}
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    try:
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def eventually(ask: Callable[[], T], what: str, seconds: float = 300) -> T:
    """Poll until the result is true and return it. Fails after the timeout."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(1)
    return answer
