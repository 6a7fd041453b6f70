"""Checksums of objects: which ones S3 reports, and how to compute them."""

import base64
import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

PART_SIZE = "part-size"
"""Metadata key of an object uploaded in parts: S3 reports the number of its parts, not their size."""


class Crc32:
    """CRC-32 with the interface of hashlib."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


Algorithm: TypeAlias = "hashlib._Hash | Crc32"


def strongest(head: Mapping[str, Any]) -> tuple[Algorithm, bytes] | None:
    """Return the best checksum of the whole object in its HEAD response, as algorithm and expected digest; None if
    there is none."""
    digest = head["Metadata"].get("sha256", "")
    if re.fullmatch("[0-9a-f]{64}", digest):  # other programs may use the same name for something else
        return hashlib.sha256(), bytes.fromhex(digest)
    whole = head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    for name, algorithm in (("ChecksumSHA256", hashlib.sha256()), ("ChecksumCRC32", Crc32())):
        value = head.get(name)
        if value is not None and whole and "-" not in value:  # with a dash: a checksum of the parts' checksums
            return algorithm, base64.b64decode(value)
    return None


def part_size(head: Mapping[str, Any]) -> int | None:
    """Return the part size in bytes of an object of ours, if the server has the CRC-32 of its parts' CRC-32."""
    size, checksum = head["Metadata"].get(PART_SIZE, ""), head.get("ChecksumCRC32", "")
    if not re.fullmatch("[1-9][0-9]{,12}", size) or head.get("ChecksumType", "COMPOSITE") != "COMPOSITE":
        return None
    num_parts = -(-head["ContentLength"] // int(size))
    return int(size) if checksum.endswith(f"-{num_parts}") else None


def composite(crcs: Sequence[bytes]) -> str:
    """Return the CRC-32 of the parts' CRC-32, in S3's notation."""
    return f"{base64.b64encode(zlib.crc32(b''.join(crcs)).to_bytes(4, 'big')).decode()}-{len(crcs)}"
