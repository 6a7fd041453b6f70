"""Which credentials the API gets, and where they come from."""

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


def test_an_expired_token_is_read_again(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", server.kubeconfig(tmp_path))
    cluster = connect()
    server.kubeconfig(tmp_path, {"token": "new"})
    server.answers = [status(401, "Unauthorized"), Answer(body=pod("a"))]
    assert cluster.get(PODS, "a") == pod("a")
    assert server.tokens() == ["Bearer old", "Bearer new"]


def test_a_token_file_that_was_renewed_is_read_again(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    monkeypatch.setenv("KUBECONFIG", server.kubeconfig(tmp_path, {"tokenFile": str(token)}))
    cluster = connect()
    token.write_text("new")
    server.answers = [status(401), Answer(body=pod("a"))]
    cluster.get(PODS, "a")
    assert server.tokens() == ["Bearer old", "Bearer new"]


def plugin(folder: Path, expires: str) -> dict[str, Any]:
    """A kubeconfig's user whose plugin gives token-1, token-2, ..."""
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


def test_a_plugins_token_is_used_until_the_api_refuses_it(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", server.kubeconfig(tmp_path, plugin(tmp_path, "2099-01-01T00:00:00Z")))
    cluster = connect()
    server.answers = [Answer(body=pod("a")), status(401), Answer(body=pod("a"))]
    cluster.get(PODS, "a")
    cluster.get(PODS, "a")
    assert server.tokens() == ["Bearer token-1", "Bearer token-1", "Bearer token-2"]


def test_a_plugins_token_that_has_expired_is_renewed_before_it_is_refused(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", server.kubeconfig(tmp_path, plugin(tmp_path, "2020-01-01T00:00:00Z")))
    cluster = connect()
    server.answers = [Answer(body=pod("a"))]
    cluster.get(PODS, "a")
    assert server.tokens() == ["Bearer token-2"]


def test_threads_whose_token_expired_read_it_again_once(server: ApiServer, tmp_path: Path) -> None:
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


def test_credentials_that_stay_refused_are_told_with_what_to_do(cluster: ApiCluster, server: ApiServer) -> None:
    server.answers = [status(403, 'pods is forbidden: User "system:anonymous" cannot get')]
    with pytest.raises(ClusterError, match="log in again"):
        cluster.get(PODS, "a")
    assert len(server.requests) == 2, "once more after the kubeconfig was read again"


def test_a_kubeconfig_that_has_become_unreadable_is_told(
    cluster: ApiCluster, server: ApiServer, tmp_path: Path
) -> None:
    (tmp_path / "kubeconfig").write_text("{")
    server.answers = [status(401)]
    with pytest.raises(ClusterError, match="reloading the kubeconfig failed"):
        cluster.get(PODS, "a")


# Kubeconfig


def test_the_namespace_is_the_contexts(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", server.kubeconfig(tmp_path))
    assert connect().namespace == "team"
    assert connect(namespace="other").namespace == "other"


def test_a_context_may_be_named_where_none_is_current(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(server.kubeconfig(tmp_path))
    path.write_text(json.dumps({**json.loads(path.read_text()), "current-context": ""}))
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert connect("x").namespace == "team"


@pytest.mark.parametrize("text", ["", "{", "[]", "a: b", "contexts: 3"])
def test_a_kubeconfig_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "kubeconfig").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with pytest.raises(PreflightError, match="cannot connect to a Kubernetes cluster"):
        connect()


def test_no_kubeconfig_and_an_unknown_context_are_told(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    with pytest.raises(PreflightError, match="cannot connect"):
        connect()
    monkeypatch.setenv("KUBECONFIG", server.kubeconfig(tmp_path))
    with pytest.raises(PreflightError, match="nosuch"):
        connect("nosuch")


def test_the_environments_proxy_is_used_but_for_its_exceptions(
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
