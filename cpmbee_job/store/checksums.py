"""Whether a file is the object that S3 describes."""

import base64
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpmbee_job.store.files import COPY_BYTES


def matches(path: Path, head: Mapping[str, Any]) -> bool:
    """Whether the file has the strongest checksum that the object's HEAD tells (true where it tells none)."""
    digest = head["Metadata"].get("sha256")
    if digest is not None:
        return file_digest(path, hashlib.sha256()).hex() == str(digest)
    whole = head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    for name, algorithm in (("ChecksumSHA256", hashlib.sha256()), ("ChecksumCRC32", _Crc32())):
        value = head.get(name)
        if value is not None and whole and "-" not in value:  # with a dash: a checksum of the parts' checksums
            return base64.b64encode(file_digest(path, algorithm)).decode() == str(value)
    return True


class _Crc32:
    """CRC-32 with the interface of hashlib."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


def file_digest(path: Path, algorithm: Any) -> bytes:
    """The digest of the file's content, by a fresh object with the interface of hashlib."""
    with path.open("rb") as file:
        while chunk := file.read(COPY_BYTES):
            algorithm.update(chunk)
    return bytes(algorithm.digest())
