"""An object becomes a file: ranges in parallel, checked while they arrive; after a cut only those that are missing."""

from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from botocore.exceptions import FlexibleChecksumError

from cpmbee_job.store.base import Progress
from cpmbee_job.store.checksums import Crc32, composite, part_size, strongest
from cpmbee_job.store.partial import Partial, boot_id, partial_file
from cpmbee_job.store.s3.client import Limits
from cpmbee_job.store.s3.responses import BROKEN_BODY, BrokenBodyError, pause

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CHUNK_BYTES = 256 << 10  # still in a core's cache when it is written


class Download:
    """The object `target` of a bucket on its way to a file of this machine."""

    def __init__(self, client: "S3Client", bucket: str, target: str, limits: Limits, progress: Progress) -> None:
        self._client, self._bucket, self._target = client, bucket, target
        self._limits, self._progress = limits, progress
        self._stopped = Event()
        self._by_parts = False

    def to(self, path: Path) -> None:
        """Raises boto's errors, and `BrokenBodyError` where what comes is time and again not what was stored."""
        for attempt in range(1, self._limits.attempts + 1):
            head = self._client.head_object(Bucket=self._bucket, Key=self._target, ChecksumMode="ENABLED")
            size, etag = head["ContentLength"], head["ETag"]
            range_size = part_size(head) or self._limits.size_of_parts(size)
            identity = f"s3://{self._bucket}/{self._target} {etag}"
            if strongest(head) is None and part_size(head) is None:  # what is left of it will not be checked
                identity += f" {boot_id()}"
            try:
                with partial_file(path, identity, size, range_size) as partial:
                    self._fetch(partial, head)
            except BrokenBodyError:
                if attempt == self._limits.attempts:
                    raise
                pause(attempt)
            else:
                return

    def _fetch(self, partial: Partial, head: Mapping[str, Any]) -> None:
        """Completes the file and checks it; forgets it where it is not the object."""
        in_order, crcs, whole = strongest(head), [], partial.whole
        self._by_parts = in_order is None and part_size(head) is not None
        self._stopped.clear()
        with ThreadPoolExecutor(self._limits.threads) as pool:
            tasks = [
                pool.submit(self._read_range if number in whole else self._fetch_range, partial, number, head["ETag"])
                for number in range(len(partial.ranges))
            ]
            try:
                for number, task in enumerate(tasks):
                    crcs.append(task.result())
                    if in_order is not None:
                        for piece in partial.read(number):
                            in_order[0].update(piece)
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
        if in_order is not None:
            good = in_order[0].digest() == in_order[1]
        else:
            good = not self._by_parts or composite(crcs) == head["ChecksumCRC32"]
        if not good:
            partial.forget()
            self._progress(-partial.size)
            raise BrokenBodyError("its checksum is not the one it was stored with")

    def _read_range(self, partial: Partial, number: int, _etag: str) -> bytes:
        crc = Crc32()
        if self._by_parts:
            for piece in partial.read(number):
                crc.update(piece)
        self._progress(len(partial.ranges[number]))
        return crc.digest()

    def _fetch_range(self, partial: Partial, number: int, etag: str) -> bytes:
        """Returns its CRC-32, where the object is checked by parts."""
        wanted, offset, crc = partial.ranges[number], 0, Crc32()
        for attempt in range(1, self._limits.attempts + 1):
            try:
                for chunk in self._chunks(wanted[offset:], partial.size, etag):
                    partial.write(number, offset, chunk)
                    if self._by_parts:
                        crc.update(chunk)
                    offset += len(chunk)
                    self._progress(len(chunk))
            except BROKEN_BODY as error:
                if isinstance(error, FlexibleChecksumError):  # boto3 has checked what came, and it is not the object
                    self._progress(-offset)
                    offset, crc = 0, Crc32()
                if attempt == self._limits.attempts:
                    self._progress(-offset)
                    raise
                pause(attempt)
            else:
                break
        partial.keep(number)
        return crc.digest()

    def _chunks(self, wanted: range, size: int, etag: str) -> Iterator[bytes]:
        only: dict[str, Any] = {} if len(wanted) == size else {"Range": f"bytes={wanted.start}-{wanted.stop - 1}"}
        answer = self._client.get_object(Bucket=self._bucket, Key=self._target, **only)
        with closing(answer["Body"]) as body:
            if answer["ETag"] != etag:
                raise BrokenBodyError("it was replaced while it was read")
            if answer["ContentLength"] != len(wanted):
                raise BrokenBodyError(f"{len(wanted)} bytes were asked for, {answer['ContentLength']} come")
            while chunk := body.read(_CHUNK_BYTES):
                if self._stopped.is_set():
                    raise CancelledError
                yield chunk
