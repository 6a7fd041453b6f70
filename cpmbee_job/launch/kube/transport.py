"""Send requests to the Kubernetes API, using the official client for kubeconfig, credentials, TLS and proxies.

Temporary failures are retried; others are raised as our errors, with the server's message.
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
from cpmbee_job.launch.kube.fields import objects_at, text_at
from cpmbee_job.launch.kube.protocol import Object

TIMEOUT = urllib3.Timeout(connect=6, read=60)
"""Seconds to connect, and between two reads. The readers of a stream reopen it after a read timeout, which also detects
lost connections."""
TRIES = 4
MOST_CONNECTIONS = 64
"""Size of the connection pool."""
CONFIG_ERRORS = (ConfigException, OSError, yaml.YAMLError, LookupError, TypeError, AttributeError)
"""Raised by the client for an unusable kubeconfig."""

T = TypeVar("T")
Headers = Mapping[str, str]

_RETRIED = {429, 500, 502, 503, 504}
_NETWORK_ERRORS = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
_PERMANENT_TLS = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")


class GoneError(ClusterError):
    """410: the resourceVersion or the continue token has expired. `next_page` is the token to continue with."""

    def __init__(self, message: str, next_page: str) -> None:
        super().__init__(message)
        self.next_page = next_page


class Transport:
    """A thread-safe connection. `load` reads kubeconfig and credentials, again whenever the API denies the current
    ones; `pause` sleeps between two tries.
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
        on_headers: Callable[[Headers], None] | None = None,
    ) -> Object:
        """Return the JSON object of the response."""

        def read(response: urllib3.BaseHTTPResponse) -> Object:
            answer: Object = documents.from_json(response.data)
            if on_headers is not None:
                on_headers(response.headers)
            return answer

        return self._try(method, path, query or {}, body, accept, read)

    def lines(self, path: str, query: Mapping[str, str], longest: int | None = None) -> Iterator[bytes]:
        """Yield the lines of the body as they arrive, each with its newline. A line of more than `longest` bytes comes
        in pieces, of which only the last one has the newline. Raises `UnreachableError` if the stream is interrupted.
        """
        response = self._try("GET", path, query, None, "*/*", lambda response: response)
        rest = b""
        try:
            for chunk in response.stream(2**16) if response.chunked else iter(lambda: response.read1(2**16), b""):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield from _split(line + b"\n", longest)
                *pieces, rest = _split(rest, longest) if rest else [b""]
                yield from pieces
        except _NETWORK_ERRORS as error:
            raise UnreachableError(f"{self.address}: the stream was interrupted: {_innermost(error)}") from error
        finally:
            response.close()  # a connection with unread data must not return to the pool
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
        """Return what `read` makes of a successful response."""
        reloaded = False
        problem: CpmbeeError = UnreachableError(self.address)
        for attempt in range(1, TRIES + 1):
            client, wait = self._client, 0.5 * 2**attempt
            try:
                response = self._send(client, method, path, query, body, accept)
                if response.status < 300:
                    return read(response)
                problem = _as_error(response, f"{method} {path}")
                if _is_unauthenticated(response.status, problem) and not reloaded:  # a token may have expired
                    reloaded = True
                    self._reload(client)
                    continue
                if response.status not in _RETRIED:
                    raise problem
                wait = max(wait, _retry_after(response))
            except (*_NETWORK_ERRORS, ValueError) as error:  # ValueError: truncated JSON
                problem = UnreachableError(
                    f"{self.address}: the Kubernetes API does not answer: {_innermost(error)}",
                    hint="check the connection with `kubectl version`",
                )
                if any(name in str(_innermost(error)) for name in _PERMANENT_TLS):
                    raise problem from error
                problem.__cause__ = error
            if attempt < TRIES:
                self.pause(wait * random.uniform(0.8, 1.2))
        raise problem

    def _send(
        self, client: ApiClient, method: str, path: str, query: Mapping[str, str], body: Any, accept: str
    ) -> urllib3.BaseHTTPResponse:
        try:  # may read files, or start a credential plugin
            credentials = client.configuration.auth_settings().get("BearerToken")
        except CONFIG_ERRORS as error:
            raise ClusterError(f"{self.address}: cannot get credentials: {error}") from error
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
            if self._client is not refused:  # another thread reloaded it
                return
            try:
                self._client = _prepared(self._load())
            except CONFIG_ERRORS as error:
                raise ClusterError(
                    f"{self.address}: the Kubernetes API rejects the credentials, and reloading the kubeconfig failed: "
                    f"{error}"
                ) from error


def _prepared(client: ApiClient) -> ApiClient:
    client.rest_client.pool_manager.connection_pool_kw["maxsize"] = MOST_CONNECTIONS
    return client


def _split(line: bytes, longest: int | None) -> list[bytes]:
    step = longest or len(line)
    return [line[start : start + step] for start in range(0, len(line), step)]


def _is_unauthenticated(status: int, problem: CpmbeeError) -> bool:
    """Return whether the API does not accept the credentials."""
    return status == 401 or (status == 403 and "system:anonymous" in problem.message)


def _retry_after(response: urllib3.BaseHTTPResponse) -> float:
    """Return the seconds of the `Retry-After` header, at most 10."""
    seconds = response.headers.get("Retry-After", "")
    return min(float(seconds), 10) if seconds.isdigit() else 0


def _as_error(response: urllib3.BaseHTTPResponse, request: str) -> CpmbeeError:
    """Return the API's `Status` as one of our errors, with its message."""
    answer = _body(response)
    status = response.status
    message = text_at(answer, "message") or f"{request}: status {status}"
    if status == 404:
        return NotFoundError(message)
    if status == 409:
        return ConflictError(message)
    if status == 410:
        return GoneError(message, text_at(answer, "metadata", "continue"))
    if status in (400, 413, 422):
        causes = [(text_at(one, "field"), text_at(one, "message")) for one in objects_at(answer, "details", "causes")]
        return RejectedError(message, causes)
    if status in _RETRIED:
        return UnreachableError(f"the Kubernetes API failed: {message}")
    error = ClusterError(message)
    if _is_unauthenticated(status, error):
        return ClusterError(
            f"the Kubernetes API rejects the credentials: {message}",
            hint="log in again; `kubectl auth whoami` shows the current user",
        )
    return error


def _body(response: urllib3.BaseHTTPResponse) -> Object:
    data = b""
    try:
        data = response.data
        return documents.from_json(data)
    except (*_NETWORK_ERRORS, ValueError):
        text = data[:500].decode(errors="replace").strip()  # of a proxy, for example
        return {"message": f"status {response.status} {response.reason or ''}: {text}".rstrip(": ")}


def _innermost(error: BaseException) -> BaseException:
    """Return the original cause, which `ProxyError` and others wrap."""
    reason = getattr(error, "reason", None) or error.__cause__
    return _innermost(reason) if isinstance(reason, BaseException) else error
