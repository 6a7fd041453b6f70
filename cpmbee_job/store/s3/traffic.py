"""What goes to and fro between this process and S3, told to whoever counts it: each try, also one that is repeated."""

from typing import TYPE_CHECKING, Any, Protocol

from cpmbee_job.process import activity
from cpmbee_job.store.s3.responses import BROKEN_BODY

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

NO_ANSWER = "no answer"
BROKEN = "broken body"
"""Reasons of `Observer.failed` beside the HTTP status of an answer."""
_STEP = 1 << 20
_MEANT = {404, 409, 412}
"""That there is no such object, that another writer was first: answers, no failures."""


class Observer(Protocol):
    """Is told of bodies and failures as they come, from any thread."""

    def sent(self, num_bytes: int) -> None: ...

    def received(self, num_bytes: int) -> None: ...

    def failed(self, reason: str) -> None: ...


class Nobody:
    """The null `Observer`."""

    def sent(self, num_bytes: int) -> None: ...

    def received(self, num_bytes: int) -> None: ...

    def failed(self, reason: str) -> None: ...


_observer: Observer = Nobody()


def observe(observer: Observer) -> None:
    """From now on tell `observer`, of all stores of this process."""
    global _observer
    _observer = observer


def watch(client: "S3Client") -> None:
    """Have what `client` moves told to the observer."""
    client.meta.events.register("before-send.s3", _sending)
    client.meta.events.register("response-received.s3", _answered)
    client.meta.events.register("after-call.s3.GetObject", _reading)


def _sending(request: Any, **_more: Any) -> None:
    activity.moved()
    _observer.sent(int(request.headers.get("Content-Length") or 0))


def _answered(response_dict: dict[str, Any] | None, **_more: Any) -> None:
    activity.moved()
    if response_dict is None:
        _observer.failed(NO_ANSWER)
    elif response_dict["status_code"] >= 400 and response_dict["status_code"] not in _MEANT:
        _observer.failed(str(response_dict["status_code"]))


def _reading(parsed: dict[str, Any], **_more: Any) -> None:
    if "Body" in parsed:
        parsed["Body"] = _Body(parsed["Body"])


class _Body:
    """An answer's body, told of as it is read."""

    def __init__(self, body: "StreamingBody") -> None:
        self._body = body
        self.close = body.close

    def read(self, amount: int | None = None) -> bytes:
        if amount is None:  # in steps that can be told of
            return b"".join(iter(lambda: self.read(_STEP), b""))
        try:
            data = self._body.read(amount)
        except BROKEN_BODY:
            _observer.failed(BROKEN)
            raise
        activity.moved()
        _observer.received(len(data))
        return data

    def readinto(self, buffer: Any) -> int:  # a memoryview, of which the stubs know nothing
        try:
            count = self._body.readinto(buffer)
        except BROKEN_BODY:
            _observer.failed(BROKEN)
            raise
        activity.moved()
        _observer.received(count)
        return count
