"""Objects in S3, or in a server with the same API. botocore retries failed requests. This module retries truncated or
altered bodies, and finds out whether a retried conditional put succeeded the first time. Every object is written with
its SHA-256; reads of whole objects verify it."""

import base64
import builtins
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from botocore import exceptions as boto

from cpmbee_job.errors import AccessError, ConflictError, DamagedError, SpecError, StoreError
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import Leftover, ObjectInfo, Progress, Store, changed, check_key, no_progress
from cpmbee_job.store.files import translate_os_errors
from cpmbee_job.store.s3.client import DEFAULT_LIMITS, Limits, listed, make_client
from cpmbee_job.store.s3.download import Download
from cpmbee_job.store.s3.file_parts import UploadSource
from cpmbee_job.store.s3.responses import (
    BROKEN_BODY,
    NO_SUCH_KEY,
    BrokenBodyError,
    error_code,
    translate_s3_errors,
    tries,
)
from cpmbee_job.store.s3.upload import MultipartUpload

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

T = TypeVar("T")

READ_STEP = 1 << 20
LOST_CONDITION = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404"}
OTHER_CONTENT = {"PreconditionFailed", "412", "InvalidRange", "416"}


class S3Store(Store):
    """A `Store` in a bucket below a prefix. Safe for several threads."""

    def __init__(self, url: str, storage: StorageSpec, limits: Limits = DEFAULT_LIMITS) -> None:
        self.url = url.rstrip("/")
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise SpecError(f"{url}: names no bucket", hint="use s3://bucket/folder")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._limits = limits
        self._endpoint = _endpoint_name(storage.endpoint_url)
        settings = {"ServerSideEncryption": storage.sse, "SSEKMSKeyId": storage.sse_kms_key_id}
        self._encryption: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        self._storage = storage
        self._client = make_client(storage, limits)
        self._bucket_seen = False

    @cached_property
    def _unsigned_client(self) -> "S3Client":
        return make_client(self._storage, self._limits, sign_bodies=False)

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        def read(answer: "GetObjectOutputTypeDef") -> tuple[bytes, str]:
            data, expected = answer["Body"].read(), answer["Metadata"].get("sha256")
            if expected is not None and hashlib.sha256(data).hexdigest() != expected:
                raise BrokenBodyError("its SHA-256 differs from its metadata")
            return data, answer["ETag"].strip('"')

        with self._translated(key):
            return self._get(key, read)

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview], etag: str | None = None) -> None:
        length = sum(map(len, buffers))
        if length == 0:
            return

        def fill(answer: "GetObjectOutputTypeDef") -> None:
            is_other = etag is not None and answer["ETag"].strip('"') != etag  # not every server knows the condition
            if is_other or answer["ContentLength"] != length:
                raise changed(self._name(key))
            _fill(buffers, answer["Body"])

        with self._translated(key):
            try:
                condition = {} if etag is None else {"IfMatch": f'"{etag}"'}
                self._get(key, fill, Range=f"bytes={start}-{start + length - 1}", **condition)
            except boto.ClientError as error:
                if error_code(error) in OTHER_CONTENT:
                    raise changed(self._name(key)) from error
                raise

    def info(self, key: str) -> ObjectInfo | None:
        with self._translated(key):
            try:
                head = self._client.head_object(**self._object(key))
            except boto.ClientError as error:
                if error_code(error) not in NO_SUCH_KEY:
                    raise
                self._require_bucket()  # the response to a HEAD does not distinguish the two
                return None
        return ObjectInfo(key, head["ContentLength"], head["ETag"].strip('"'), head["Metadata"].get("sha256"))

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        checksum = hashlib.sha256(data)
        conditions: dict[str, Any] = {"IfNoneMatch": "*"} if if_none_match else {}
        if if_match is not None:
            conditions["IfMatch"] = f'"{if_match}"'
        writer = uuid.uuid4().hex
        with self._translated(key):
            for is_last in tries(self._limits.attempts):
                try:
                    answer = self._client.put_object(
                        **self._object(key),
                        Body=data,
                        Metadata={"sha256": checksum.hexdigest(), "writer": writer},
                        ChecksumSHA256=base64.b64encode(checksum.digest()).decode(),
                        **conditions,
                        **self._encryption,
                    )
                except (boto.ClientError, boto.HTTPClientError, boto.ConnectionError) as error:
                    # A retried put may have failed because its first try succeeded.
                    etag = self._written_by(key, writer) if conditions else None
                    if etag is not None:
                        return etag
                    code = error_code(error)
                    if code == "ConditionalRequestConflict" and not is_last:
                        continue
                    if conditions and code in LOST_CONDITION:
                        what = "exists already" if if_none_match else "changed since it was read"
                        raise ConflictError(f"{self._name(key)}: {what}") from error
                    raise
                return answer["ETag"].strip('"')
        raise AssertionError("the last attempt returns or raises")

    def upload(self, path: Path, key: str, progress: Progress = no_progress, *, sha256: str | None = None) -> None:
        target = self._key(key)
        with translate_os_errors(path), path.open("rb", buffering=0) as file, self._translated(key):
            clients = self._client, lambda: self._unsigned_client
            upload = MultipartUpload(clients, self._bucket, target, self._encryption, self._limits, progress)
            size = os.fstat(file.fileno()).st_size
            if size > self._limits.part_size:
                upload.send(UploadSource(path, file.fileno(), self._limits.size_of_parts(size)), sha256)
            else:
                self.put(key, file.read())
                progress(size)
                upload.tidy_up()

    def download(self, key: str, path: Path, progress: Progress = no_progress) -> None:
        with self._translated(key):
            try:
                Download(self._client, self._bucket, self._key(key), self._limits, progress).to(path)
            except boto.ClientError as error:
                if error_code(error) in NO_SUCH_KEY:
                    self._require_bucket()  # the response to a HEAD does not distinguish the two
                raise
            except (*BROKEN_BODY, BrokenBodyError) as error:
                raise self._broken(key, error) from error

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._translated(prefix):
            entries = listed(
                self._client, "list_objects_v2", "Contents", Bucket=self._bucket, Prefix=self._prefix + prefix
            )
        found = [
            ObjectInfo(
                entry["Key"].removeprefix(self._prefix),
                entry["Size"],
                entry["ETag"].strip('"'),
                modified=entry["LastModified"].timestamp(),
            )
            for entry in entries
            if not entry["Key"].endswith("/")  # a console's marker of an empty folder
        ]
        yield from sorted(found, key=lambda entry: entry.key.encode())  # not all servers sort so

    def folders(self, prefix: str = "") -> builtins.list[str]:
        start = f"{self._key(prefix)}/" if prefix else self._prefix
        with self._translated(prefix):
            place = {"Bucket": self._bucket, "Prefix": start, "Delimiter": "/"}
            found = listed(self._client, "list_objects_v2", "CommonPrefixes", **place)
        names = (entry["Prefix"][len(start) : -1] for entry in found)
        return sorted(filter(None, names), key=str.encode)

    def delete(self, key: str) -> None:
        with self._translated(key):
            self._client.delete_object(**self._object(key))

    def leftovers(self) -> Iterator[Leftover]:
        with self._translated(""):
            place = {"Bucket": self._bucket, "Prefix": self._prefix}
            for upload in listed(self._client, "list_multipart_uploads", "Uploads", **place):
                target = {"Bucket": self._bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                try:
                    parts = listed(self._client, "list_parts", "Parts", **target)
                except boto.ClientError as error:
                    if error_code(error) != "NoSuchUpload":  # else it was just completed
                        raise
                    continue
                times = [upload["Initiated"], *(part["LastModified"] for part in parts)]  # an upload may take days
                size = sum(part["Size"] for part in parts)
                key = upload["Key"].removeprefix(self._prefix)
                yield Leftover(key, size, max(times).timestamp(), upload["UploadId"])

    def discard(self, leftover: Leftover) -> None:
        with self._translated(leftover.key):
            try:
                self._client.abort_multipart_upload(**self._object(leftover.key), UploadId=leftover.upload_id)
            except boto.ClientError as error:
                if error_code(error) != "NoSuchUpload":
                    raise

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _object(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._key(key)}

    def _name(self, key: str) -> str:
        return f"{self.url}/{key}" if key else self.url

    def _get(self, key: str, read: Callable[["GetObjectOutputTypeDef"], T], **only: Any) -> T:
        """Return what `read` returns for the response. Repeat the request if the body is truncated or altered."""
        for is_last in tries(self._limits.attempts):
            answer = self._client.get_object(**self._object(key), **only)
            try:
                return read(answer)
            except (*BROKEN_BODY, BrokenBodyError) as error:
                if is_last:
                    raise self._broken(key, error) from error
        raise AssertionError("the last attempt returns or raises")

    def _broken(self, key: str, error: Exception) -> StoreError:
        altered = isinstance(error, BrokenBodyError | boto.FlexibleChecksumError)
        kind = DamagedError if altered else StoreError
        return kind(f"{self._name(key)}: arrived truncated or altered: {error}")

    def _written_by(self, key: str, writer: str) -> str | None:
        """Return the object's ETag if the put with this id wrote it."""
        try:
            head = self._client.head_object(**self._object(key))
        except (boto.ClientError, boto.HTTPClientError, boto.ConnectionError):
            return None  # raise the error of the put instead
        return head["ETag"].strip('"') if head["Metadata"].get("writer") == writer else None

    def _require_bucket(self) -> None:
        """Raise `AccessError` if the bucket does not exist."""
        if self._bucket_seen:
            return
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except boto.ClientError as error:
            if error_code(error) in {"404", "NoSuchBucket"}:
                raise self._no_bucket() from error
        self._bucket_seen = True

    def _no_bucket(self) -> AccessError:
        return AccessError(
            f"{self.url}: no bucket '{self._bucket}' at {self._endpoint} (NoSuchBucket)",
            hint="create it, or correct the URL or storage.endpoint_url",
        )

    def _translated(self, key: str) -> AbstractContextManager[None]:
        """Translate the errors of boto3 to errors of this package."""
        return translate_s3_errors(self._name(key), self._endpoint, self._no_bucket())


def _fill(buffers: Sequence[memoryview], body: Any) -> None:
    """Fill the buffers, in steps that fit into the CPU's cache: botocore copies each one once more."""
    for buffer in buffers:
        filled = 0
        while filled < len(buffer):
            count = body.readinto(buffer[filled : filled + READ_STEP])
            if count == 0:
                raise boto.IncompleteReadError(actual_bytes=filled, expected_bytes=len(buffer))
            filled += count


def _endpoint_name(endpoint_url: str | None) -> str:
    """Return the endpoint for messages, without credentials."""
    if endpoint_url is None:
        return "AWS"
    parts = urlsplit(endpoint_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
