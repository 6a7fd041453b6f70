"""The Kubernetes API, over the official client's transport: its kubeconfig, its credentials, its TLS."""

import http.client
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import urllib3.exceptions
from kubernetes import config
from kubernetes.client import ApiClient
from kubernetes.config.config_exception import ConfigException

from cpmbee_job.errors import (
    ClusterError,
    ConflictError,
    CpmbeeError,
    NotFoundError,
    PreflightError,
    RejectedError,
    UnreachableError,
)
from cpmbee_job.launch.cluster import CLUSTER_WIDE, Change, Cluster, Object

PAGE = 500
"""Objects in one answer to a list."""
WATCH_SECONDS = 20
"""Length of one watch request."""
TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and without a byte."""
TRIES = 5
RETRIED = {429, 500, 502, 503, 504}
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class ApiCluster:
    """A `Cluster` as a kubeconfig's context, or a pod's service account, reaches it."""

    def __init__(self, load: Callable[[], ApiClient], namespace: str) -> None:
        self._load = load
        self._client = load()
        self._namespace = namespace

    @property
    def namespace(self) -> str:
        return self._namespace

    @property
    def address(self) -> str:
        return str(self._client.configuration.host)

    def server_version(self) -> str:
        return str(self._json("GET", "/version")["gitVersion"])

    def get(self, kind: str, name: str) -> Object:
        return self._json("GET", f"{self._path(kind)}/{quote(name)}")

    def list(
        self, kind: str, labels: Mapping[str, str] | None = None, fields: str = "", *, all_namespaces: bool = False
    ) -> Iterator[Object]:
        query = {"limit": str(PAGE), "labelSelector": _selector(labels), "fieldSelector": fields}
        while True:
            page = self._json("GET", self._path(kind, all_namespaces), query)
            yield from page["items"]
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                return

    def create(self, kind: str, manifest: Object, *, dry_run: bool = False) -> Object:
        query = {"fieldValidation": "Strict", "dryRun": "All" if dry_run else ""}
        return self._json("POST", self._path(kind), query, manifest)

    def delete(self, kind: str, name: str, uid: str) -> None:
        options = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        self._json("DELETE", f"{self._path(kind)}/{quote(name)}", body=options)

    def watch(self, kind: str, labels: Mapping[str, str]) -> Iterator[tuple[Change, Object] | None]:
        version = ""
        while True:
            try:
                if not version:
                    # a page's version is the list's; these lists are of one run, so one page is the rule
                    query = {"labelSelector": _selector(labels)}
                    answer = self._json("GET", self._path(kind), query)
                    version = answer["metadata"]["resourceVersion"]
                    for item in answer["items"]:
                        yield "ADDED", item
                yield None
                query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
                query |= {"labelSelector": _selector(labels), "timeoutSeconds": str(WATCH_SECONDS)}
                for line in _lines(self._request("GET", self._path(kind), query)):
                    event = json.loads(line)
                    if event["type"] == "ERROR":  # 410: too old a version
                        version = ""
                        break
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        yield event["type"], event["object"]
            except (UnreachableError, ValueError):  # a line that was cut off is no JSON
                yield None
                time.sleep(1)

    def logs(
        self, pod: str, container: str, *, follow: bool = False, previous: bool = False, since: str | None = None
    ) -> Iterator[tuple[str, str]]:
        query = {"container": container, "timestamps": "true", "sinceTime": since or ""}
        query |= {"follow": "true" if follow else "", "previous": "true" if previous else ""}
        try:
            response = self._request("GET", f"{self._path('api/v1/pods')}/{quote(pod)}/log", query)
        except RejectedError as error:  # 400: the container is waiting to start, or has no previous log
            raise NotFoundError(f"{pod}: no log of {container}: {error.message}") from error
        for line in _lines(response):
            stamp, _, text = line.decode(errors="replace").partition(" ")
            yield stamp, text

    def _path(self, kind: str, all_namespaces: bool = False) -> str:
        group, _, plural = kind.rpartition("/")
        scope = "" if kind in CLUSTER_WIDE or all_namespaces else f"namespaces/{quote(self._namespace)}/"
        return f"/{group}/{scope}{plural}"

    def _json(self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None) -> Object:
        for attempt in range(1, TRIES + 1):
            response = self._request(method, path, query, body)
            try:
                answer: Object = json.loads(response.data)
            except (urllib3.exceptions.HTTPError, ValueError) as error:
                if attempt == TRIES or method != "GET":
                    raise UnreachableError(f"{self.address}: its answer was cut off: {error}") from error
            else:
                return answer
        raise AssertionError("the last attempt returns or raises")

    def _request(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None
    ) -> urllib3.BaseHTTPResponse:
        """An answer whose status is good; its body is not read yet."""
        parameters = [(key, value) for key, value in (query or {}).items() if value]
        refreshed = False
        for attempt in range(1, TRIES + 1):
            last = attempt == TRIES
            request = self._client.param_serialize(
                method,
                path,
                query_params=list(parameters),
                header_params={"Accept": "application/json", "Content-Type": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
            )
            try:
                response: urllib3.BaseHTTPResponse = self._client.rest_client.request(
                    *request[:2], headers=request[2], body=body, _request_timeout=TIMEOUT
                ).response
            except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
                if last or _is_certificate_problem(error):
                    raise UnreachableError(
                        f"{self.address}: the Kubernetes API does not answer: {_innermost(error)}",
                        hint="`kubectl version` tells whether this machine reaches the cluster at all",
                    ) from error
            else:
                if response.status < 300:
                    return response
                if response.status == 401 and not refreshed:
                    refreshed, self._client = True, self._load()  # a token may have expired
                    continue
                if last or response.status not in RETRIED:
                    raise _as_error(response.status, _body(response), f"{method} {path}")
            time.sleep(min(0.5 * 2**attempt, 8))
        raise AssertionError("the last attempt returns or raises")


def connect(context: str | None = None, namespace: str | None = None) -> Cluster:
    """The cluster of the kubeconfig (`KUBECONFIG`, `~/.kube/config`), or the one that this pod runs in.

    Raises `PreflightError` where there is neither.
    """
    if context is None and "KUBECONFIG" not in os.environ and (_SERVICE_ACCOUNT / "token").is_file():

        def in_cluster() -> ApiClient:
            config.load_incluster_config()
            return _without_retries(ApiClient())

        return ApiCluster(in_cluster, namespace or (_SERVICE_ACCOUNT / "namespace").read_text().strip())

    def from_file() -> ApiClient:
        return _without_retries(config.new_client_from_config(context=context))

    try:
        contexts, active = config.list_kube_config_contexts()
        chosen = next((c for c in contexts if c["name"] == context), active)
        return ApiCluster(from_file, namespace or chosen["context"].get("namespace") or "default")
    except (ConfigException, OSError) as error:
        raise PreflightError(
            f"no way to a Kubernetes cluster: {error}", hint="set KUBECONFIG, or name one of its contexts by --context"
        ) from error


def _without_retries(client: ApiClient) -> ApiClient:
    """Its transport's own retries would hide how long a call takes, and triple it."""
    client.rest_client.pool_manager.connection_pool_kw["retries"] = False
    return client


def _selector(labels: Mapping[str, str] | None) -> str:
    return ",".join(f"{key}={value}" for key, value in (labels or {}).items())


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The body's lines as they come. Raises `UnreachableError` where it breaks off."""
    rest = b""
    try:
        for chunk in response.stream(2**16, decode_content=True):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
        raise UnreachableError(f"the stream broke off: {_innermost(error)}") from error
    finally:
        response.release_conn()
    if rest:
        yield rest


def _body(response: urllib3.BaseHTTPResponse) -> Object:
    try:
        answer = json.loads(response.data)
        return answer if isinstance(answer, dict) else {"message": str(answer)}
    except (urllib3.exceptions.HTTPError, ValueError):
        return {"message": response.reason or f"status {response.status}"}


def _as_error(status: int, answer: Object, request: str) -> CpmbeeError:
    """The API's `Status` as one of our errors, in its own words."""
    message = str(answer.get("message") or f"{request}: status {status}")
    details = answer.get("details") or {}
    if status == 404:
        return NotFoundError(message)
    if status == 409:
        return ConflictError(message)
    if status in (400, 413, 422):
        causes = [(str(c.get("field", "")), str(c.get("message", ""))) for c in details.get("causes") or ()]
        return RejectedError(message, causes)
    if status == 401:
        return ClusterError(f"the Kubernetes API does not accept the credentials: {message}", hint="log in again")
    if status in RETRIED:
        return UnreachableError(f"the Kubernetes API is in trouble: {message}")
    return ClusterError(message)


def _innermost(error: BaseException) -> BaseException:
    """The cause that says something: `MaxRetryError` and its like only wrap it."""
    reason = getattr(error, "reason", None) or error.__cause__
    return _innermost(reason) if isinstance(reason, BaseException) else error


def _is_certificate_problem(error: BaseException) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(_innermost(error))
