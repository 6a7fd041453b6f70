"""Requests to the Kubernetes API, with the official client's kubeconfig, credentials, TLS and proxies.

What is worth another try is tried again; what remains is one of our errors, in the server's own words.
"""

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

import urllib3
import urllib3.exceptions
import yaml
from kubernetes.client import ApiClient
from kubernetes.config.config_exception import ConfigException

from cpmbee_job import __version__, documents
from cpmbee_job.errors import ClusterError, ConflictError, CpmbeeError, NotFoundError, RejectedError, UnreachableError
from cpmbee_job.launch.kube.fields import parts, text
from cpmbee_job.launch.kube.protocol import Object

TIMEOUT = urllib3.Timeout(connect=6, read=60)
"""Seconds to connect, and without a byte: streams that are silent for longer are opened again by those who read them,
which also finds the ones that broke unnoticed."""
TRIES = 4
MOST_CONNECTIONS = 64
"""Connections that are kept for another request."""
CONFIG_ERRORS = (ConfigException, OSError, yaml.YAMLError, LookupError, TypeError, AttributeError)
"""What the client raises for a kubeconfig that it can't use."""

T = TypeVar("T")
Headers = Mapping[str, str]

_RETRIED = {429, 500, 502, 503, 504}
_NETWORK_ERRORS = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
_PERMANENT_TLS = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")


def ignore_headers(_headers: Headers) -> None:
    """Nobody looks at them."""


class GoneError(ClusterError):
    """410: the version, or the page, that was asked for is no longer known. `next_page`: where to go on instead."""

    def __init__(self, message: str, next_page: str) -> None:
        super().__init__(message)
        self.next_page = next_page


class Transport:
    """Threads may share it. `load` reads kubeconfig and credentials, again whenever the API refuses the present ones;
    `pause` passes the time between two tries.
    """

    def __init__(
        self,
        load: Callable[[], ApiClient],
        *,
        pause: Callable[[float], object] = time.sleep,
        timeout: urllib3.Timeout = TIMEOUT,
    ) -> None:
        self._load = load
        self.pause = pause
        self._timeout = timeout
        self._loading = threading.Lock()
        self._client = _prepared(load())

    @property
    def address(self) -> str:
        return str(self._client.configuration.host)

    def json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        accept: str = "application/json",
        on_headers: Callable[[Headers], None] = ignore_headers,
    ) -> Object:
        """The answer's JSON object."""

        def read(response: urllib3.BaseHTTPResponse) -> Object:
            answer: Object = documents.from_json(response.data)
            on_headers(response.headers)
            return answer

        return self._try(method, path, query or {}, body, accept, read)

    def lines(self, path: str, query: Mapping[str, str], longest: int | None = None) -> Iterator[bytes]:
        """The body's lines as they come, each with its newline: a piece without one is gone on with by the next (at
        most `longest` bytes come at once), or the end. Raises `UnreachableError` where the stream breaks off.
        """
        response = self._try("GET", path, query, None, "*/*", lambda response: response)
        rest = b""
        try:
            for chunk in response.stream(2**16) if response.chunked else iter(lambda: response.read1(2**16), b""):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield from _cut(line + b"\n", longest)
                *pieces, rest = _cut(rest, longest) if rest else [b""]
                yield from pieces
        except _NETWORK_ERRORS as error:
            raise UnreachableError(f"{self.address}: the stream broke off: {_innermost(error)}") from error
        finally:
            response.close()  # a connection with an unread rest must not go back into the pool
        if rest:
            yield rest

    def _try(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any,
        accept: str,
        read: Callable[[urllib3.BaseHTTPResponse], T],
    ) -> T:
        """What `read` makes of an answer whose status is good."""
        reloaded = False
        problem: CpmbeeError = UnreachableError(self.address)
        for attempt in range(1, TRIES + 1):
            client, wait = self._client, 0.5 * 2**attempt
            try:
                response = self._send(client, method, path, query, body, accept)
                if response.status < 300:
                    return read(response)
                problem = _as_error(response, f"{method} {path}")
                if _is_stranger(response.status, problem) and not reloaded:  # a token may have expired
                    reloaded = True
                    self._reload(client)
                    continue
                if response.status not in _RETRIED:
                    raise problem
                wait = max(wait, _asked_for(response))
            except (*_NETWORK_ERRORS, ValueError) as error:  # ValueError: JSON that was cut off
                problem = self._silent(error)
                if any(name in str(_innermost(error)) for name in _PERMANENT_TLS):
                    raise problem from error
                problem.__cause__ = error
            if attempt < TRIES:
                self.pause(wait * random.uniform(0.8, 1.2))
        raise problem

    def _send(
        self, client: ApiClient, method: str, path: str, query: Mapping[str, str], body: Any, accept: str
    ) -> urllib3.BaseHTTPResponse:
        try:  # this may read files, or start the kubeconfig's plugin
            credentials = client.configuration.auth_settings().get("BearerToken")
        except CONFIG_ERRORS as error:
            raise ClusterError(f"{self.address}: no credentials: {error}") from error
        headers = {"Accept": accept, "User-Agent": f"cpmbee-job/{__version__}"}
        if credentials is not None:
            headers["Authorization"] = str(credentials["value"])
        if body is not None:
            headers["Content-Type"] = "application/json"
        given = urlencode([(key, value) for key, value in query.items() if value])
        response: urllib3.BaseHTTPResponse = client.rest_client.pool_manager.request(
            method,
            f"{client.configuration.host}{path}{'?' if given else ''}{given}",
            headers=headers,
            body=None if body is None else json.dumps(body).encode(),
            timeout=self._timeout,
            preload_content=False,
            retries=False,
        )
        return response

    def _reload(self, refused: ApiClient) -> None:
        with self._loading:
            if self._client is not refused:  # another thread has been here
                return
            try:
                self._client = _prepared(self._load())
            except CONFIG_ERRORS as error:
                raise ClusterError(
                    f"{self.address}: the Kubernetes API refuses the credentials, and the kubeconfig can't be read "
                    f"again: {error}"
                ) from error

    def _silent(self, error: BaseException) -> UnreachableError:
        return UnreachableError(
            f"{self.address}: the Kubernetes API does not answer: {_innermost(error)}",
            hint="`kubectl version` tells whether this machine reaches the cluster at all",
        )


def _prepared(client: ApiClient) -> ApiClient:
    client.rest_client.pool_manager.connection_pool_kw["maxsize"] = MOST_CONNECTIONS
    return client


def _cut(line: bytes, longest: int | None) -> list[bytes]:
    step = longest or len(line)
    return [line[start : start + step] for start in range(0, len(line), step)]


def _is_stranger(status: int, problem: CpmbeeError) -> bool:
    """Whether the API does not know who asks."""
    return status == 401 or (status == 403 and "system:anonymous" in problem.message)


def _asked_for(response: urllib3.BaseHTTPResponse) -> float:
    """Seconds that an overloaded server asks us to wait; not more than some."""
    seconds = response.headers.get("Retry-After", "")
    return min(float(seconds), 10) if seconds.isdigit() else 0


def _as_error(response: urllib3.BaseHTTPResponse, request: str) -> CpmbeeError:
    """The API's `Status` as one of our errors, in its own words."""
    answer = _body(response)
    status = response.status
    message = text(answer, "message") or f"{request}: status {status}"
    if status == 404:
        return NotFoundError(message)
    if status == 409:
        return ConflictError(message)
    if status == 410:
        return GoneError(message, text(answer, "metadata", "continue"))
    if status in (400, 413, 422):
        causes = [(text(one, "field"), text(one, "message")) for one in parts(answer, "details", "causes")]
        return RejectedError(message, causes)
    if status in _RETRIED:
        return UnreachableError(f"the Kubernetes API is in trouble: {message}")
    error = ClusterError(message)
    if _is_stranger(status, error):
        return ClusterError(
            f"the Kubernetes API does not accept the credentials: {message}",
            hint="log in again; `kubectl auth whoami` tells as whom",
        )
    return error


def _body(response: urllib3.BaseHTTPResponse) -> Object:
    data = b""
    try:
        data = response.data
        return documents.from_json(data)
    except (*_NETWORK_ERRORS, ValueError):
        words = data[:500].decode(errors="replace").strip()  # a proxy's, say
        return {"message": f"status {response.status} {response.reason or ''}: {words}".rstrip(": ")}


def _innermost(error: BaseException) -> BaseException:
    """The cause that says something: `ProxyError` and its like only wrap it."""
    reason = getattr(error, "reason", None) or error.__cause__
    return _innermost(reason) if isinstance(reason, BaseException) else error
