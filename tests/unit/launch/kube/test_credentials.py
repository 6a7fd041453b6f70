"""The credentials that the API gets, and their sources."""

import itertools
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from kubernetes import config

from cpmbee_job.errors import ClusterError, PreflightError
from cpmbee_job.launch.kube.api import ApiCluster, connect
from cpmbee_job.launch.kube.protocol import PODS
from cpmbee_job.launch.kube.transport import Transport
from tests.unit.launch.api_server import Answer, ApiServer, pod, status


def test_an_expired_token_is_reloaded(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", server.kubeconfig(tmp_path))
    cluster = connect()
    server.kubeconfig(tmp_path, {"token": "new"})
    server.answers = [status(401, "Unauthorized"), Answer(body=pod("a"))]
    assert cluster.get(PODS, "a") == pod("a")
    assert server.tokens() == ["Bearer old", "Bearer new"]


def test_a_renewed_token_file_is_reloaded(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    monkeypatch.setenv("KUBECONFIG", server.kubeconfig(tmp_path, {"tokenFile": str(token)}))
    cluster = connect()
    token.write_text("new")
    server.answers = [status(401), Answer(body=pod("a"))]
    cluster.get(PODS, "a")
    assert server.tokens() == ["Bearer old", "Bearer new"]


def plugin(folder: Path, expires: str) -> dict[str, Any]:
    """A kubeconfig user whose credential plugin returns token-1, token-2, ..."""
    script = folder / "plugin.py"
    script.write_text(
        "import json, pathlib\n"
        f"count = pathlib.Path({str(folder / 'count')!r})\n"
        "number = int(count.read_text()) + 1 if count.exists() else 1\n"
        "count.write_text(str(number))\n"
        "print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1', 'kind': 'ExecCredential',\n"
        f"    'status': {{'token': f'token-{{number}}', 'expirationTimestamp': '{expires}'}}}}))\n"
    )
    command = {"command": sys.executable, "args": [str(script)], "apiVersion": "client.authentication.k8s.io/v1"}
    return {"exec": {**command, "interactiveMode": "Never"}}


def test_the_token_of_a_plugin_is_used_until_the_api_rejects_it(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", server.kubeconfig(tmp_path, plugin(tmp_path, "2099-01-01T00:00:00Z")))
    cluster = connect()
    server.answers = [Answer(body=pod("a")), status(401), Answer(body=pod("a"))]
    cluster.get(PODS, "a")
    cluster.get(PODS, "a")
    assert server.tokens() == ["Bearer token-1", "Bearer token-1", "Bearer token-2"]


def test_an_expired_token_of_a_plugin_is_renewed_before_its_use(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", server.kubeconfig(tmp_path, plugin(tmp_path, "2020-01-01T00:00:00Z")))
    cluster = connect()
    server.answers = [Answer(body=pod("a"))]
    cluster.get(PODS, "a")
    assert server.tokens() == ["Bearer token-2"]


def test_threads_reload_an_expired_token_once(server: ApiServer, tmp_path: Path) -> None:
    file, loads = server.kubeconfig(tmp_path), itertools.count(1)
    last = [0]

    def load() -> Any:
        last[0] = next(loads)
        return config.new_client_from_config(file)

    cluster = ApiCluster(Transport(load, pause=lambda _: None), "team")
    server.answers = [status(401), Answer(body=pod("a"))]
    threads = [threading.Thread(target=cluster.get, args=(PODS, "a")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert last[0] == 2


def test_rejected_credentials_raise_an_error_with_a_hint(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [status(403, 'pods is forbidden: User "system:anonymous" cannot get')]
    with pytest.raises(ClusterError, match="log in again"):
        cluster.get(PODS, "a")
    assert len(server.requests) == 2, "once more after the kubeconfig was read again"


def test_an_unreadable_kubeconfig_raises_an_error(cluster: ApiCluster, server: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text("{")
    server.answers = [status(401)]
    with pytest.raises(ClusterError, match="reloading the kubeconfig failed"):
        cluster.get(PODS, "a")


# Kubeconfig


def test_the_default_namespace_is_that_of_the_context(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", server.kubeconfig(tmp_path))
    assert connect().namespace == "team"
    assert connect(namespace="other").namespace == "other"


def test_a_context_can_be_chosen_without_a_current_one(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(server.kubeconfig(tmp_path))
    path.write_text(json.dumps({**json.loads(path.read_text()), "current-context": ""}))
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert connect("x").namespace == "team"


@pytest.mark.parametrize("text", ["", "{", "[]", "a: b", "contexts: 3"])
def test_an_invalid_kubeconfig_raises_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "kubeconfig").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with pytest.raises(PreflightError, match="cannot connect to a Kubernetes cluster"):
        connect()


def test_a_missing_kubeconfig_and_an_unknown_context_raise_errors(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    with pytest.raises(PreflightError, match="cannot connect"):
        connect()
    monkeypatch.setenv("KUBECONFIG", server.kubeconfig(tmp_path))
    with pytest.raises(PreflightError, match="nosuch"):
        connect("nosuch")


def test_the_proxy_of_the_environment_is_used_except_for_no_proxy(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.address)
    server.answers = [Answer(body=pod("a"))]
    behind = ApiServer()
    behind.address = "http://api.invalid:6443"
    monkeypatch.setenv("KUBECONFIG", behind.kubeconfig(tmp_path))
    connect().get(PODS, "a")
    assert len(server.requests) == 1
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("KUBECONFIG", server.kubeconfig(tmp_path))
    connect().get(PODS, "a")
    assert len(server.requests) == 2
