"""Observe the traffic between this process and S3, including retried requests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cpmbee_job.process import activity
from cpmbee_job.store.base import Progress, no_progress
from cpmbee_job.store.s3.responses import BROKEN_BODY

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

NO_ANSWER = "no answer"
BROKEN = "broken body"
"""Reasons of `Observer.failed` other than an HTTP status."""
_STEP = 1 << 20
_EXPECTED = {404, 409, 412}
"""Statuses that are answers, not failures: no such object, a lost race."""


@dataclass(frozen=True)
class Observer:
    """Receives the bytes of bodies and the reasons of failures, from any thread."""

    sent: Progress = no_progress
    received: Progress = no_progress
    failed: Callable[[str], None] = lambda _reason: None


_observer = Observer()


def observe(observer: Observer) -> None:
    """Report the traffic of all stores of this process to `observer` from now on."""
    global _observer
    _observer = observer


def watch(client: "S3Client") -> None:
    """Report the traffic of `client` to the observer."""
    client.meta.events.register("before-send.s3", _on_request)
    client.meta.events.register("response-received.s3", _on_response)
    client.meta.events.register("after-call.s3.GetObject", _on_object)


def _on_request(request: Any, **_more: Any) -> None:
    activity.record()
    _observer.sent(int(request.headers.get("Content-Length") or 0))


def _on_response(response_dict: dict[str, Any] | None, **_more: Any) -> None:
    activity.record()
    if response_dict is None:
        _observer.failed(NO_ANSWER)
    elif response_dict["status_code"] >= 400 and response_dict["status_code"] not in _EXPECTED:
        _observer.failed(str(response_dict["status_code"]))


def _on_object(parsed: dict[str, Any], **_more: Any) -> None:
    if "Body" in parsed:
        parsed["Body"] = _ObservedBody(parsed["Body"])


class _ObservedBody:
    """The body of a response, reported as it is read."""

    def __init__(self, body: "StreamingBody") -> None:
        self._body = body
        self.close = body.close

    def read(self, amount: int | None = None) -> bytes:
        if amount is None:  # in steps, to report progress
            return b"".join(iter(lambda: self.read(_STEP), b""))
        data: bytes = self._observed(self._body.read, amount)
        self._received(len(data))
        return data

    def readinto(self, buffer: Any) -> int:  # a memoryview; the stubs disagree
        count: int = self._observed(self._body.readinto, buffer)
        self._received(count)
        return count

    def _observed(self, read: Any, argument: Any) -> Any:
        try:
            return read(argument)
        except BROKEN_BODY:
            _observer.failed(BROKEN)
            raise

    def _received(self, num_bytes: int) -> None:
        activity.record()
        _observer.received(num_bytes)
