"""The checksums by which S3 and we know content again."""

import base64
import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cpmbee_job.store.files import COPY_BYTES

PART_SIZE = "part-size"
"""In an object's metadata, where it was written in parts: S3 tells how many there are, not where they begin."""


class Algorithm(Protocol):
    """What hashlib's objects can."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class Crc32:
    """CRC-32 with the interface of hashlib."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


def strongest(head: Mapping[str, Any]) -> tuple[Algorithm, bytes] | None:
    """The best way to check the whole object that its HEAD tells: an algorithm, and the digest to come out. None where
    it tells none."""
    digest = head["Metadata"].get("sha256", "")
    if re.fullmatch("[0-9a-f]{64}", digest):  # others may mean something else by that name
        return hashlib.sha256(), bytes.fromhex(digest)
    whole = head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    for name, algorithm in (("ChecksumSHA256", hashlib.sha256()), ("ChecksumCRC32", Crc32())):
        value = head.get(name)
        if value is not None and whole and "-" not in value:  # with a dash: a checksum of the parts' checksums
            return algorithm, base64.b64decode(value)
    return None


def part_size(head: Mapping[str, Any]) -> int | None:
    """Bytes in each part of an object that we wrote, where the server has a CRC-32 of the CRC-32 of all parts."""
    size, checksum = head["Metadata"].get(PART_SIZE, ""), head.get("ChecksumCRC32", "")
    if not re.fullmatch("[1-9][0-9]{,12}", size) or head.get("ChecksumType", "COMPOSITE") != "COMPOSITE":
        return None
    num_parts = -(-head["ContentLength"] // int(size))
    return int(size) if checksum.endswith(f"-{num_parts}") else None


def composite(crcs: Sequence[bytes]) -> str:
    """The CRC-32 of the CRC-32 of all parts, as S3 writes it."""
    return f"{base64.b64encode(zlib.crc32(b''.join(crcs)).to_bytes(4, 'big')).decode()}-{len(crcs)}"


def file_digest(path: Path, algorithm: Algorithm) -> bytes:
    """The digest of the file's content, by a fresh algorithm."""
    with path.open("rb") as file:
        while chunk := file.read(COPY_BYTES):
            algorithm.update(chunk)
    return algorithm.digest()
