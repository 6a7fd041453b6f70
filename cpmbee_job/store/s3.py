"""Objects in S3, or in a server that speaks its protocol.

botocore retries requests that fail; this module retries bodies that arrive short or altered, and makes sure of what a
repeated conditional put has done. Every object is written with its SHA-256, and whole reads are checked against it.
"""

import base64
import builtins
import hashlib
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from botocore import exceptions as boto
from s3transfer.exceptions import RetriesExceededError
from s3transfer.manager import TransferConfig, TransferManager
from s3transfer.subscribers import BaseSubscriber

from cpmbee_job.errors import (
    AccessError,
    ConflictError,
    CpmbeeError,
    DamagedError,
    NotFoundError,
    SpecError,
    StoreError,
)
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import Leftover, ObjectInfo, Progress, check_key, no_progress
from cpmbee_job.store.checksums import file_digest, matches
from cpmbee_job.store.files import explained, whole_file
from cpmbee_job.store.s3_client import DEFAULT_LIMITS, Limits, make_client
from cpmbee_job.store.s3_leftovers import discard_leftover, find_leftovers

BROKEN_BODY = (
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
    boto.ReadTimeoutError,
    boto.ConnectionClosedError,
    boto.FlexibleChecksumError,
    RetriesExceededError,
)
LOST_CONDITION = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404"}
NO_SUCH_KEY = {"NoSuchKey", "404", "NotFound"}


class BrokenBodyError(Exception):
    """What came is not what was stored; never leaves this module."""


class S3Store:
    """A `Store` in a bucket below a prefix. Safe to use from several threads."""

    def __init__(self, url: str, storage: StorageSpec, limits: Limits = DEFAULT_LIMITS) -> None:
        self._url = url.rstrip("/")
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise SpecError(f"{url}: names no bucket", hint="s3://bucket/folder")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._limits = limits
        self._place = _place(storage.endpoint_url)
        self._encryption: dict[str, Any] = {}
        if storage.sse is not None:
            self._encryption["ServerSideEncryption"] = storage.sse
        if storage.sse_kms_key_id is not None:
            self._encryption["SSEKMSKeyId"] = storage.sse_kms_key_id
        self._client = make_client(storage, limits)
        self._bucket_seen = False

    @property
    def url(self) -> str:
        return self._url

    def get(self, key: str) -> bytes:
        return self.get_with_etag(key)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        return self._read(key)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        data, _ = self._read(key, Range=f"bytes={start}-{start + length - 1}")
        if len(data) != length:
            raise StoreError(f"{self._name(key)}: {length} bytes from {start} asked for, {len(data)} came")
        return data

    def info(self, key: str) -> ObjectInfo | None:
        with self._explained(key):
            try:
                head = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
            except boto.ClientError as error:
                if _code(error) not in NO_SUCH_KEY:
                    raise
                self._require_bucket()  # a HEAD does not say which of the two is missing
                return None
        return ObjectInfo(key, head["ContentLength"], head["ETag"].strip('"'), head["Metadata"].get("sha256"))

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        checksum = hashlib.sha256(data)
        conditions: dict[str, Any] = {}
        if if_none_match:
            conditions["IfNoneMatch"] = "*"
        if if_match is not None:
            conditions["IfMatch"] = f'"{if_match}"'
        writer = uuid.uuid4().hex
        with self._explained(key):
            for attempt in range(1, self._limits.attempts + 1):
                try:
                    answer = self._client.put_object(
                        Bucket=self._bucket,
                        Key=self._key(key),
                        Body=data,
                        Metadata={"sha256": checksum.hexdigest(), "writer": writer},
                        ChecksumSHA256=base64.b64encode(checksum.digest()).decode(),
                        **conditions,
                        **self._encryption,
                    )
                except (boto.ClientError, boto.HTTPClientError, boto.ConnectionError) as error:
                    # A put that was sent again may have lost to its own first try.
                    etag = self._written_by(key, writer) if conditions else None
                    if etag is not None:
                        return etag
                    code = _code(error)
                    if code == "ConditionalRequestConflict" and attempt < self._limits.attempts:
                        _pause(attempt)
                        continue
                    if conditions and code in LOST_CONDITION:
                        what = "exists already" if if_none_match else "is no longer the object that was read"
                        raise ConflictError(f"{self._name(key)}: {what}") from error
                    raise
                return answer["ETag"].strip('"')
        raise AssertionError("the last attempt returns or raises")

    def upload(self, path: Path, key: str, progress: Progress = no_progress) -> None:
        with explained(path):
            size, digest = path.stat().st_size, file_digest(path, hashlib.sha256()).hex()
        extra = {"Metadata": {"sha256": digest}, **self._encryption}
        target = self._key(key)
        with explained(path), self._explained(key):
            try:
                with self._transfers() as transfers:
                    transfers.upload(str(path), self._bucket, target, extra, [_Reporter(progress)]).result()
            except boto.ClientError:
                # Completing a multipart upload twice fails; what counts is what is there.
                if self._stored(target) != (size, digest):
                    raise
            if (stored := self._stored(target)) != (size, digest):
                raise StoreError(f"{self._name(key)}: {size} bytes were sent, the store has {stored}")

    def download(self, key: str, path: Path, progress: Progress = no_progress) -> None:
        with whole_file(path) as temporary, self._explained(key):
            for attempt in range(1, self._limits.attempts + 1):
                reporter = _Reporter(progress)
                try:
                    self._fetch(key, temporary, reporter)
                except (*BROKEN_BODY, BrokenBodyError) as error:
                    reporter.take_back()
                    if attempt == self._limits.attempts:
                        raise StoreError(f"{self._name(key)}: never arrived as it was stored: {error}") from error
                    _pause(attempt)
                else:
                    return

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._explained(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            found = [
                ObjectInfo(
                    entry["Key"].removeprefix(self._prefix),
                    entry["Size"],
                    entry["ETag"].strip('"'),
                    modified=entry["LastModified"].timestamp(),
                )
                for page in pages
                for entry in page.get("Contents", ())
                if not entry["Key"].endswith("/")  # what consoles make to show an empty folder
            ]
        yield from sorted(found, key=lambda entry: entry.key.encode())  # not all servers list in this order

    def folders(self, prefix: str = "") -> builtins.list[str]:
        start = f"{self._key(prefix)}/" if prefix else self._prefix
        with self._explained(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=start, Delimiter="/"
            )
            names = [found["Prefix"][len(start) : -1] for page in pages for found in page.get("CommonPrefixes", ())]
        return sorted(filter(None, names), key=str.encode)

    def delete(self, key: str) -> None:
        with self._explained(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def leftovers(self) -> Iterator[Leftover]:
        with self._explained(""):
            yield from find_leftovers(self._client, self._bucket, self._prefix)

    def discard(self, leftover: Leftover) -> None:
        with self._explained(leftover.key):
            discard_leftover(self._client, self._bucket, self._key(leftover.key), leftover.upload_id)

    def local_path(self, key: str) -> Path | None:  # noqa: ARG002 (no object has one)
        return None

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _name(self, key: str) -> str:
        return f"{self._url}/{key}" if key else self._url

    def _read(self, key: str, **only: Any) -> tuple[bytes, str]:
        """The body, complete and as it was stored (of a range only its length can be known), and the tag."""
        with self._explained(key):
            for attempt in range(1, self._limits.attempts + 1):
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key), **only)
                try:
                    data = answer["Body"].read()
                    expected = answer["Metadata"].get("sha256")
                    if not only and expected is not None and hashlib.sha256(data).hexdigest() != expected:
                        raise BrokenBodyError("its SHA-256 is not the one it was stored with")
                except (*BROKEN_BODY, BrokenBodyError) as error:
                    if attempt == self._limits.attempts:
                        altered = isinstance(error, BrokenBodyError | boto.FlexibleChecksumError)
                        kind = DamagedError if altered else StoreError
                        raise kind(f"{self._name(key)}: never arrived as it was stored: {error}") from error
                    _pause(attempt)
                else:
                    return data, answer["ETag"].strip('"')
        raise AssertionError("the last attempt returns or raises")

    def _fetch(self, key: str, path: Path, reporter: "_Reporter") -> None:
        """One try to copy the object to `path`; `BrokenBodyError` where the copy is not the object."""
        target = self._key(key)
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=target, ChecksumMode="ENABLED")
        except boto.ClientError as error:
            if _code(error) in NO_SUCH_KEY:
                self._require_bucket()
            raise
        with self._transfers() as transfers:
            transfers.download(self._bucket, target, str(path), None, [reporter]).result()
        if (size := path.stat().st_size) != head["ContentLength"]:
            raise BrokenBodyError(f"{size} bytes came, it has {head['ContentLength']}")
        if not matches(path, head):
            raise BrokenBodyError("its checksum is not the one it was stored with")

    def _transfers(self) -> TransferManager:
        config = TransferConfig(
            multipart_threshold=self._limits.part_size,
            multipart_chunksize=self._limits.part_size,
            max_request_concurrency=self._limits.threads,
            num_download_attempts=self._limits.attempts,
        )
        return TransferManager(self._client, config)

    def _stored(self, target: str) -> tuple[int, str | None] | None:
        """Size and SHA-256 of what is stored there, None for nothing."""
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=target)
        except boto.ClientError as error:
            if _code(error) in NO_SUCH_KEY:
                return None
            raise
        return head["ContentLength"], head["Metadata"].get("sha256")

    def _written_by(self, key: str, writer: str) -> str | None:
        """The object's tag if that very put wrote it."""
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        except (boto.ClientError, boto.HTTPClientError, boto.ConnectionError):
            return None  # the error of the put itself says more
        return head["ETag"].strip('"') if head["Metadata"].get("writer") == writer else None

    def _require_bucket(self) -> None:
        """Raises where the bucket is what is missing."""
        if self._bucket_seen:
            return
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except boto.ClientError as error:
            if _code(error) in {"404", "NoSuchBucket"}:
                raise self._no_bucket() from error
        self._bucket_seen = True

    def _no_bucket(self) -> AccessError:
        return AccessError(
            f"{self._url}: there is no bucket '{self._bucket}' at {self._place}",
            hint="create it, or mend the URL or storage.endpoint_url",
        )

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Turns what boto3 says about an object into an error of ours; credentials are never part of it."""
        name = self._name(key)
        try:
            yield
        except CpmbeeError:
            raise
        except boto.ClientError as error:
            code = _code(error)
            if code == "NoSuchBucket":
                raise self._no_bucket() from error
            if code in NO_SUCH_KEY:
                raise NotFoundError(f"{name}: no such object") from error
            words = error.response.get("Error", {}).get("Message") or "no reason given"
            hint = _hint(error)
            kind = StoreError if hint is None else AccessError
            raise kind(f"{name}: {self._place} answered {code}: {words}", hint=hint) from error
        except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
            kind = StoreError if isinstance(error, boto.CredentialRetrievalError) else AccessError
            raise kind(
                f"{name}: no credentials for {self._place}: {error}",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or use a role",
            ) from error
        except boto.SSLError as error:
            raise AccessError(
                f"{name}: the certificate of {self._place} is not trusted: {_reason(error)}",
                hint="name the file with your CA's certificate in storage.ca_bundle",
            ) from error
        except (boto.HTTPClientError, boto.ConnectionError) as error:
            raise StoreError(
                f"{name}: {self._place} can't be reached: {_reason(error)}",
                hint="check storage.endpoint_url, the network and HTTPS_PROXY/NO_PROXY",
            ) from error
        except boto.ParamValidationError as error:
            raise SpecError(f"{name}: no name that S3 allows: {_reason(error)}") from error
        except boto.BotoCoreError as error:
            raise StoreError(f"{name}: {_reason(error)}") from error


class _Reporter(BaseSubscriber):
    """Passes on s3transfer's progress, and takes it back where a whole try was in vain."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._moved = 0
        self._lock = Lock()

    def on_progress(self, future: Any, bytes_transferred: int, **_: Any) -> None:  # noqa: ARG002 (s3transfer's call)
        with self._lock:
            self._moved += bytes_transferred
            self._progress(bytes_transferred)

    def take_back(self) -> None:
        self._progress(-self._moved)


def _place(endpoint_url: str | None) -> str:
    """The server's name for messages, without what a URL may hold beside it."""
    if endpoint_url is None:
        return "AWS"
    parts = urlsplit(endpoint_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _code(error: Exception) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, boto.ClientError) else ""


def _hint(error: boto.ClientError) -> str | None:
    code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code in {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}:
        return "the credentials are wrong or too old: see AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE"
    if code in {"RequestTimeTooSkewed", "RequestExpired"}:
        return "the clock of this machine is wrong"
    if code in {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}:
        return "set storage.region to the bucket's region"
    return "these credentials may not do that here" if status in (401, 403) else None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0.5, 1) * min(0.1 * 2**attempt, 5))
