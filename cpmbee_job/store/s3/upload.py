"""Upload a large file in parts. An interrupted upload is continued by the next call.

S3 keeps the parts of an incomplete upload, but not what it was for. So the cache folder keeps its id, in a file that is
locked while a process continues the upload. A part is reused if its checksum matches the file. Nothing else depends
on the content, unless its SHA-256 was known beforehand.
"""

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from botocore import exceptions as boto

from cpmbee_job import documents
from cpmbee_job.errors import DamagedError
from cpmbee_job.process.contract import default_cache_dir
from cpmbee_job.store.base import Progress
from cpmbee_job.store.files import open_locked
from cpmbee_job.store.s3.checksums import PART_SIZE
from cpmbee_job.store.s3.client import Limits, listed
from cpmbee_job.store.s3.file_parts import PartBody, SourceChangedError, UploadSource
from cpmbee_job.store.s3.responses import error_code, tries

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, PartTypeDef

log = logging.getLogger(__name__)

_LOST_UPLOAD = {"NoSuchUpload", "InvalidPart", "InvalidPartOrder", "404", "NoSuchKey"}
"""The upload was completed or aborted, by another process or by a request whose response was lost."""
_ALTERED = {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}


class BegunUpload(documents.Document):
    """An incomplete upload."""

    id: str
    writer: str
    """For the object's metadata."""
    sha256: str | None
    """For the object's metadata; None if it was unknown."""
    checks_crc: bool
    """Whether the server verifies the CRC-32 of each part."""


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """Create or open, and lock, the record of an upload; None if another process holds it or the disk fails."""
    descriptor = None
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_locked(path, 0o600)
    if descriptor is None:
        yield None
        return
    with os.fdopen(descriptor):
        yield descriptor


def _read(record: int | None) -> BegunUpload | None:
    with suppress(DamagedError):
        return None if record is None else BegunUpload.parse(os.pread(record, 1 << 16, 0), "a record of an upload")
    return None


def _write(record: int | None, begun: BegunUpload | None) -> None:
    if record is not None:
        with suppress(OSError):  # such as a full disk: then the upload cannot be continued
            os.ftruncate(record, 0)
            os.pwrite(record, b"" if begun is None else documents.to_json(begun.model_dump()), 0)


class MultipartUpload:
    """The upload of the object `target` of a bucket."""

    def __init__(
        self,
        clients: tuple["S3Client", Callable[[], "S3Client"]],
        bucket: str,
        target: str,
        encryption: Mapping[str, Any],
        limits: Limits,
        progress: Progress,
    ) -> None:
        """`clients`: one that signs bodies, and a factory of one that does not."""
        self._client, self._unsigned = clients
        self._object: dict[str, Any] = {"Bucket": bucket, "Key": target}
        self._records = default_cache_dir() / "uploads"
        self._prefix = documents.digest([bucket, target])
        self._encryption, self._limits, self._progress = encryption, limits, progress

    def send(self, source: UploadSource, sha256: str | None) -> None:
        """Upload the source, with its SHA-256 if known. Raises boto's errors, and `SourceChangedError`."""
        settings = documents.digest([source.size, source.part_size, dict(self._encryption)])
        path = self._records / f"{self._prefix}.{settings}.json"
        with _locked(path) as record:
            for is_last in tries(self._limits.attempts):
                begun, uploaded = self._resume(record, source, sha256) or (self._begin(record, source, sha256), {})
                try:
                    self._complete(begun, self._send_parts(begun, uploaded, source))
                except boto.ClientError as error:
                    if error_code(error) not in _LOST_UPLOAD or is_last:
                        raise
                    self._abort(begun.id)
                    _write(record, None)
                except SourceChangedError:
                    self._abort(begun.id)
                    raise
                else:
                    break
            if record is not None:
                path.unlink(missing_ok=True)
        self.tidy_up()
        self._abort_old_uploads()

    def tidy_up(self) -> None:
        """Abort the other uploads that this machine began for the object, unless a process continues them."""
        for path in sorted(self._records.glob(f"{self._prefix}.*")):
            with _locked(path) as record:
                if (begun := _read(record)) is not None:
                    self._abort(begun.id)
                if record is not None:
                    path.unlink(missing_ok=True)

    def _abort_old_uploads(self) -> None:
        try:
            place = {"Bucket": self._object["Bucket"], "Prefix": self._object["Key"]}
            old = datetime.now(UTC) - self._limits.abandoned_after
            for found in listed(self._client, "list_multipart_uploads", "Uploads", **place):
                if found["Key"] == self._object["Key"] and found["Initiated"] < old:
                    self._abort(found["UploadId"])
        except (boto.ClientError, boto.BotoCoreError) as error:  # it requires a separate permission
            log.debug("%s: incomplete uploads may remain: %s", self._object["Key"], error)

    def _resume(
        self, record: int | None, source: UploadSource, sha256: str | None
    ) -> tuple[BegunUpload, Mapping[int, "PartTypeDef"]] | None:
        """Return the upload that an earlier call began, and its parts by index."""
        if (begun := _read(record)) is None:
            return None
        if begun.sha256 is not None and sha256 is None:
            sha256 = source.sha256()
        if begun.sha256 != sha256:
            self._abort(begun.id)
            return None
        try:
            parts = listed(self._client, "list_parts", "Parts", **self._object, UploadId=begun.id)
            return begun, {part["PartNumber"] - 1: part for part in parts}
        except boto.ClientError as error:
            log.debug("%s: cannot continue the upload: %s", self._object["Key"], error)
            self._abort(begun.id)  # it may exist, without permission to list its parts
            return None

    def _begin(self, record: int | None, source: UploadSource, sha256: str | None) -> BegunUpload:
        writer = uuid.uuid4().hex
        metadata = {"writer": writer, PART_SIZE: str(source.part_size)}
        if sha256 is not None:
            metadata["sha256"] = sha256
        answer = self._client.create_multipart_upload(
            **self._object, Metadata=metadata, ChecksumAlgorithm="CRC32", **self._encryption
        )
        checks_crc = answer.get("ChecksumAlgorithm") == "CRC32"
        begun = BegunUpload(id=answer["UploadId"], writer=writer, sha256=sha256, checks_crc=checks_crc)
        if sha256 is None and not checks_crc:
            # Without CRC-32, only the SHA-256 can verify the object.
            self._abort(begun.id)
            return self._begin(record, source, source.sha256())
        _write(record, begun)
        return begun

    def _send_parts(
        self, begun: BegunUpload, uploaded: Mapping[int, "PartTypeDef"], source: UploadSource
    ) -> list["CompletedPartTypeDef"]:
        # If the server verifies the CRC-32 of each part, the signature needs no SHA-256 of it.
        client = self._unsigned() if begun.checks_crc else self._client
        stopped, moved = Event(), 0

        def send(index: int) -> "CompletedPartTypeDef":
            part, number = source.parts[index], index + 1
            crc, known = source.crc32(part), uploaded.get(index)
            if known is not None and known["Size"] == len(part) and _is_same(known, crc, source, part):
                return {"PartNumber": number, "ETag": known["ETag"], "ChecksumCRC32": crc}
            for is_last in tries(self._limits.attempts):
                body: Any = PartBody(source, part, stopped)
                try:
                    answer = client.upload_part(
                        **self._object, UploadId=begun.id, PartNumber=number, Body=body, ChecksumCRC32=crc
                    )
                except boto.ClientError as error:
                    source.require_unchanged()
                    if error_code(error) not in _ALTERED or is_last:
                        raise
                else:
                    return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": crc}
            raise AssertionError("the last attempt returns or raises")

        with ThreadPoolExecutor(self._limits.threads) as pool:
            tasks = {pool.submit(send, index): part for index, part in enumerate(source.parts)}
            try:
                for task in as_completed(tasks):
                    task.result()
                    self._progress(len(tasks[task]))
                    moved += len(tasks[task])
            except BaseException:
                stopped.set()
                pool.shutdown(cancel_futures=True)
                self._progress(-moved)
                source.require_unchanged()
                raise
        source.require_unchanged()
        return [task.result() for task in tasks]

    def _complete(self, begun: BegunUpload, parts: list["CompletedPartTypeDef"]) -> None:
        try:
            self._client.complete_multipart_upload(**self._object, UploadId=begun.id, MultipartUpload={"Parts": parts})
        except boto.ClientError:
            # boto3 retries a request without a response, and the retry fails if the first one succeeded.
            with suppress(boto.ClientError):
                if self._client.head_object(**self._object)["Metadata"].get("writer") == begun.writer:
                    return
            raise

    def _abort(self, upload_id: str) -> None:
        try:
            self._client.abort_multipart_upload(**self._object, UploadId=upload_id)
        except (boto.ClientError, boto.BotoCoreError) as error:  # usually it does not exist any more
            log.debug("%s: an incomplete upload may remain: %s", self._object["Key"], error)


def _is_same(uploaded: "PartTypeDef", crc: str, source: UploadSource, part: range) -> bool:
    if "ChecksumCRC32" in uploaded:
        return uploaded["ChecksumCRC32"] == crc
    return uploaded["ETag"].strip('"') == source.md5(part)
