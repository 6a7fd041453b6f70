"""Create the boto3 client of a spec's storage section."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from botocore import exceptions as boto
from botocore.config import Config
from botocore.loaders import create_loader

from cpmbee_job.errors import SpecError, StoreError
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.s3.traffic import watch

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MIB = 1 << 20
MAX_PARTS = 10_000
_API_MODELS = create_loader()  # shared: reading S3's takes 0.1 s


@dataclass(frozen=True)
class Limits:
    """Retries, timeouts and part sizes of a store."""

    attempts: int = 6
    connect_timeout: float = 10.0  # seconds
    read_timeout: float = 60.0  # seconds without a byte
    part_size: int = 8 << 20  # bytes; larger objects are transferred in parallel parts
    threads: int = 8
    abandoned_after: timedelta = timedelta(days=7)  # age at which an incomplete upload is aborted

    def size_of_parts(self, size: int) -> int:
        """Return the part size of an object of `size` bytes; S3 allows 10,000 parts."""
        least = -(-size // MAX_PARTS)
        return max(self.part_size, -(-least // MIB) * MIB)


DEFAULT_LIMITS = Limits()


def make_client(storage: StorageSpec, limits: Limits, *, sign_bodies: bool | None = None) -> "S3Client":
    """Create a client. `sign_bodies`: include a SHA-256 of each body in the signature (None: boto3 decides)."""
    if storage.ca_bundle is not None and not Path(storage.ca_bundle).is_file():
        raise SpecError(f"storage.ca_bundle: {storage.ca_bundle}: no such file")
    elsewhere = storage.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    path_style = elsewhere is not None if storage.path_style == "auto" else storage.path_style
    config = Config(
        s3={
            "addressing_style": "path" if path_style else "virtual",
            **({} if sign_bodies is None else {"payload_signing_enabled": sign_bodies}),
        },
        retries={"mode": "standard", "total_max_attempts": limits.attempts},
        connect_timeout=limits.connect_timeout,
        read_timeout=limits.read_timeout,
        max_pool_connections=4 * limits.threads,
        user_agent_extra="cpmbee-job",
    )
    try:
        core = botocore.session.Session()
        core.register_component("data_loader", _API_MODELS)
        session = boto3.session.Session(botocore_session=core)
        client = session.client(
            "s3",
            endpoint_url=storage.endpoint_url,
            region_name=storage.region or session.region_name or "us-east-1",
            verify=storage.ca_bundle,
            config=config,
        )
    except ValueError as error:
        raise SpecError(f"storage.endpoint_url: {error}", hint="use the form https://host:port") from error
    except boto.BotoCoreError as error:
        raise StoreError(f"cannot create the S3 client: {' '.join(str(error).split())}") from error
    watch(client)
    return client


def listed(client: Any, operation: str, member: str, **arguments: Any) -> list[Any]:
    """Return a list that S3 returns in pages: the `member` of each response to `operation`."""
    pages = client.get_paginator(operation).paginate(**arguments)
    return [item for page in pages for item in page.get(member, ())]
