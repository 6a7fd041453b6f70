"""Download an object to a file: in parallel ranges, verified on arrival. An interrupted download is continued."""

from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from botocore.exceptions import FlexibleChecksumError

from cpmbee_job.store.base import Progress
from cpmbee_job.store.s3.checksums import Crc32, composite, part_size, strongest
from cpmbee_job.store.s3.client import Limits
from cpmbee_job.store.s3.partial import PartialFile, boot_id, partial_file
from cpmbee_job.store.s3.responses import BROKEN_BODY, BrokenBodyError, tries

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CHUNK_BYTES = 256 << 10  # fits into a core's cache


class Download:
    """The download of the object `target` of a bucket."""

    def __init__(self, client: "S3Client", bucket: str, target: str, limits: Limits, progress: Progress) -> None:
        self._client, self._bucket, self._target = client, bucket, target
        self._limits, self._progress = limits, progress
        self._stopped = Event()
        self._by_parts = False

    def to(self, path: Path) -> None:
        """Write the object to `path`. Raises boto's errors, and `BrokenBodyError` if it repeatedly arrives altered."""
        for is_last in tries(self._limits.attempts):
            head = self._client.head_object(Bucket=self._bucket, Key=self._target, ChecksumMode="ENABLED")
            size, etag = head["ContentLength"], head["ETag"]
            in_parts = part_size(head)
            range_size = in_parts or self._limits.size_of_parts(size)
            identity = f"s3://{self._bucket}/{self._target} {etag}"
            if strongest(head) is None and in_parts is None:
                # No checksum can reveal ranges that were lost in a power failure.
                identity += f" {boot_id()}"
            try:
                with partial_file(path, identity, size, range_size) as partial:
                    self._fetch(partial, head)
            except BrokenBodyError:
                if is_last:
                    raise
            else:
                return

    def _fetch(self, partial: PartialFile, head: Mapping[str, Any]) -> None:
        """Complete and verify the file; mark all of it as incomplete if the checksum is wrong."""
        in_order, crcs, complete = strongest(head), [], partial.complete
        self._by_parts = in_order is None and part_size(head) is not None
        self._stopped.clear()
        with ThreadPoolExecutor(self._limits.threads) as pool:
            tasks = [
                pool.submit(self._get_range, partial, number, head["ETag"], number in complete)
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
            partial.discard()
            self._progress(-partial.size)
            raise BrokenBodyError("its checksum is wrong")

    def _get_range(self, partial: PartialFile, number: int, etag: str, is_complete: bool) -> bytes:
        """Fetch the range unless it is complete. Return its CRC-32 if the object is verified by parts."""
        wanted, offset, crc = partial.ranges[number], 0, Crc32()
        if is_complete:
            for piece in partial.read(number) if self._by_parts else ():
                crc.update(piece)
            self._progress(len(wanted))
            return crc.digest()
        for is_last in tries(self._limits.attempts):
            try:
                for chunk in self._chunks(wanted[offset:], partial.size, etag):
                    partial.write(number, offset, chunk)
                    if self._by_parts:
                        crc.update(chunk)
                    offset += len(chunk)
                    self._progress(len(chunk))
            except BROKEN_BODY as error:
                if isinstance(error, FlexibleChecksumError):  # boto3 found a wrong checksum
                    self._progress(-offset)
                    offset, crc = 0, Crc32()
                if is_last:
                    self._progress(-offset)
                    raise
            else:
                break
        partial.mark_complete(number)
        return crc.digest()

    def _chunks(self, wanted: range, size: int, etag: str) -> Iterator[bytes]:
        only: dict[str, Any] = {} if len(wanted) == size else {"Range": f"bytes={wanted.start}-{wanted.stop - 1}"}
        answer = self._client.get_object(Bucket=self._bucket, Key=self._target, **only)
        with closing(answer["Body"]) as body:
            if answer["ETag"] != etag:
                raise BrokenBodyError("it changed while it was read")
            if answer["ContentLength"] != len(wanted):
                raise BrokenBodyError(f"{len(wanted)} bytes requested, got {answer['ContentLength']}")
            while chunk := body.read(_CHUNK_BYTES):
                if self._stopped.is_set():
                    raise CancelledError
                yield chunk
