"""A large file becomes an object in parts, and after a cut the next call sends those that are missing.

S3 keeps the parts of an upload that was not completed, but does not tell what the upload was for. So the upload's id
lies in the cache folder of this machine, under a name made from the place and the content (and how it is cut and
encrypted): another content never finds it. Which parts are there, the server says.
"""

import base64
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from botocore import exceptions as boto

from cpmbee_job import contract
from cpmbee_job.errors import StoreError
from cpmbee_job.store.base import Progress
from cpmbee_job.store.cache import default_cache_dir
from cpmbee_job.store.files import COPY_BYTES
from cpmbee_job.store.s3_client import Limits
from cpmbee_job.store.s3_errors import NO_SUCH_KEY, error_code, pause

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
_LOST_UPLOAD = {"NoSuchUpload", "InvalidPart", "InvalidPartOrder", "404", "NoSuchKey"}
"""It was completed or aborted by somebody else, or by a request whose answer we did not get."""
_ALTERED = {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}


class SourceChangedError(StoreError):
    """The file is no longer the one that was hashed."""


class Source:
    """An open file in parts, with the SHA-256 of all of it and the CRC-32 of each part. Reads it once."""

    def __init__(self, path: Path, descriptor: int, limits: Limits) -> None:
        self.path, self.descriptor = path, descriptor
        self._state = self._look()
        self.size = self._state[0]
        self.part_size = limits.size_of_parts(self.size)
        self.parts = [
            range(start, min(start + self.part_size, self.size)) for start in range(0, self.size, self.part_size)
        ]
        whole, self.crcs = hashlib.sha256(), []
        with ThreadPoolExecutor(1) as other_core:
            for part in self.parts:
                crc = 0
                for start in part[::COPY_BYTES]:
                    data = os.pread(descriptor, min(COPY_BYTES, part.stop - start), start)
                    task = other_core.submit(zlib.crc32, data, crc)
                    whole.update(data)
                    crc = task.result()
                self.crcs.append(base64.b64encode(crc.to_bytes(4, "big")).decode())
        self.sha256 = whole.hexdigest()

    def require_unchanged(self) -> None:
        """Raises `SourceChangedError` where somebody has written to the file since it was opened."""
        if self._look() != self._state:
            raise SourceChangedError(
                f"{self.path}: changed while it was uploaded", hint="try again when nobody writes to it any more"
            )

    def _look(self) -> tuple[int, int]:
        state = os.fstat(self.descriptor)
        return state.st_size, state.st_mtime_ns


class Upload:
    """A source on its way to the object `target` of a bucket."""

    def __init__(
        self,
        clients: tuple["S3Client", Callable[[], "S3Client"]],
        bucket: str,
        target: str,
        settings: Mapping[str, Any],
        limits: Limits,
        progress: Progress,
    ) -> None:
        """`clients`: one that signs bodies, and what makes one that does not."""
        self._client, self._unsigned = clients
        self._bucket, self._target = bucket, target
        self._records = Records(bucket, target)
        self._settings, self._limits, self._progress = settings, limits, progress

    def send(self, source: Source) -> None:
        """Raises boto's errors, and `StoreError` for a file that changes meanwhile."""
        record = self._records.of(source, self._settings)
        for attempt in range(1, self._limits.attempts + 1):
            upload = self._begin(source, record)
            if upload is None:
                break
            try:
                self._send_parts(source, upload)
                self._complete(source, upload)
            except boto.ClientError as error:
                if self._stored() == (source.size, source.sha256):
                    break
                if error_code(error) not in _LOST_UPLOAD or attempt == self._limits.attempts:
                    raise
                record.unlink(missing_ok=True)
                self._progress(-upload.num_bytes(source))
                pause(attempt)
            except SourceChangedError:
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._target, UploadId=upload.id)
                record.unlink(missing_ok=True)
                raise
            else:
                break
        self.clean_up()

    def clean_up(self, *, thoroughly: bool = True) -> None:
        """Aborts what was begun for this object and is not gone on with, now that it is there. `thoroughly`: even if
        it was not begun from this machine."""
        records = self._records.all()
        if not records and not thoroughly:
            return
        for record in records:
            record.unlink(missing_ok=True)
        try:
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket, Prefix=self._target
            )
            for found in [upload for page in pages for upload in page.get("Uploads", ())]:
                if found["Key"] == self._target:
                    self._client.abort_multipart_upload(
                        Bucket=self._bucket, Key=self._target, UploadId=found["UploadId"]
                    )
        except (boto.ClientError, boto.BotoCoreError) as error:  # these rights are apart
            log.debug("uploads to %s that were cut may be left: %s", self._target, error)

    def _begin(self, source: Source, record: Path) -> "_Begun | None":
        """The upload that an earlier call has left, with its parts, or a new one; None where it has been completed."""
        try:
            kept = json.loads(record.read_bytes())
            upload = _Begun(str(kept["upload_id"]), bool(kept["checked"]))
            pages = self._client.get_paginator("list_parts").paginate(
                Bucket=self._bucket, Key=self._target, UploadId=upload.id
            )
            for part in [part for page in pages for part in page.get("Parts", ())]:
                index = part["PartNumber"] - 1
                if index < len(source.parts) and part["Size"] == len(source.parts[index]):
                    upload.tags[index] = part["ETag"]
            self._progress(upload.num_bytes(source))
            return upload
        except (OSError, ValueError, KeyError, TypeError):
            pass  # there is none
        except boto.ClientError:
            if self._stored() == (source.size, source.sha256):
                self._progress(source.size)
                return None
        answer = self._client.create_multipart_upload(
            Bucket=self._bucket,
            Key=self._target,
            Metadata={"sha256": source.sha256},
            ChecksumAlgorithm="CRC32",
            **self._settings,
        )
        upload = _Begun(answer["UploadId"], answer.get("ChecksumAlgorithm") == "CRC32")
        with suppress(OSError):  # it can't be gone on with, then
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_bytes(contract.to_json({"upload_id": upload.id, "checked": upload.checked}))
        return upload

    def _send_parts(self, source: Source, upload: "_Begun") -> None:
        # A server that checks our CRC-32 needs no SHA-256 of each part as well.
        client = self._unsigned() if upload.checked else self._client
        stopped = Event()
        with ThreadPoolExecutor(self._limits.threads) as pool:
            tasks = {
                pool.submit(self._send_part, client, source, upload.id, index, stopped): index
                for index in range(len(source.parts))
                if index not in upload.tags
            }
            try:
                for task in as_completed(tasks):
                    upload.tags[tasks[task]] = task.result()
                    self._progress(len(source.parts[tasks[task]]))
            except BaseException:
                stopped.set()
                pool.shutdown(cancel_futures=True)
                source.require_unchanged()
                raise
        source.require_unchanged()

    def _send_part(self, client: "S3Client", source: Source, upload_id: str, index: int, stopped: Event) -> str:
        for attempt in range(1, self._limits.attempts + 1):
            body: Any = _Body(source, source.parts[index], stopped)
            try:
                return client.upload_part(
                    Bucket=self._bucket,
                    Key=self._target,
                    UploadId=upload_id,
                    PartNumber=index + 1,
                    Body=body,
                    ChecksumCRC32=source.crcs[index],
                )["ETag"]
            except boto.ClientError as error:
                source.require_unchanged()
                if error_code(error) not in _ALTERED or attempt == self._limits.attempts:
                    raise
                pause(attempt)
        raise AssertionError("the last attempt returns or raises")

    def _complete(self, source: Source, upload: "_Begun") -> None:
        parts: list[CompletedPartTypeDef] = [
            {"PartNumber": index + 1, "ETag": upload.tags[index], "ChecksumCRC32": crc}
            for index, crc in enumerate(source.crcs)
        ]
        self._client.complete_multipart_upload(
            Bucket=self._bucket, Key=self._target, UploadId=upload.id, MultipartUpload={"Parts": parts}
        )

    def _stored(self) -> tuple[int, str | None] | None:
        """Size and SHA-256 of what is there, None for nothing."""
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=self._target)
        except boto.ClientError as error:
            if error_code(error) in NO_SUCH_KEY:
                return None
            raise
        return head["ContentLength"], head["Metadata"].get("sha256")


class Records:
    """The ids of the uploads that were begun from this machine for one object."""

    def __init__(self, bucket: str, target: str) -> None:
        self._folder = default_cache_dir() / "uploads"
        self._prefix = contract.digest([bucket, target])

    def of(self, source: Source, settings: Mapping[str, Any]) -> Path:
        content = contract.digest([source.sha256, source.size, source.part_size, dict(settings)])
        return self._folder / f"{self._prefix}.{content}.json"

    def all(self) -> list[Path]:
        return list(self._folder.glob(f"{self._prefix}.*"))


@dataclass
class _Begun:
    """An upload that is not completed yet."""

    id: str
    checked: bool
    """The server compares parts with their CRC-32."""
    tags: dict[int, str] = field(default_factory=dict)
    """Of the parts that are there, counted from 0."""

    def num_bytes(self, source: Source) -> int:
        return sum(len(source.parts[index]) for index in self.tags)


class _Body:
    """One part of a file for boto3. It hands out larger blocks than urllib3 asks for, which halves the time that takes,
    and ends in the middle where the upload has failed elsewhere."""

    def __init__(self, source: Source, part: range, stopped: Event) -> None:
        self._source, self._part, self._stopped = source, part, stopped
        self._place = 0

    def __len__(self) -> int:
        return len(self._part)

    def read(self, _size: int = -1) -> bytes:
        if self._stopped.is_set():
            raise _StoppedError
        left = self._part[self._place :]
        data = os.pread(self._source.descriptor, min(_READ_BYTES, len(left)), left.start)
        if left and not data:  # the file is shorter now
            raise _StoppedError
        self._place += len(data)
        return data

    def seek(self, place: int) -> None:
        self._place = place

    def tell(self) -> int:
        return self._place


class _StoppedError(BaseException):
    """None that boto3 would take for a failed connection and try again."""
