"""Access to the object store."""

import os
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from cpmbee_job import documents
from cpmbee_job.errors import SpecError
from cpmbee_job.process import contract
from cpmbee_job.spec.types import ObjectName, Section


class StorageSpec(Section):
    endpoint_url: str | None = None
    """S3 endpoint for the pods. Default: AWS."""
    launcher_endpoint_url: str | None = None
    """Endpoint of the same server for the launcher, if it is different."""
    region: str | None = None
    """Region. Default: from the AWS configuration."""
    path_style: Literal["auto"] | bool = "auto"
    """Put the bucket into the path instead of the host name. `auto`: if an endpoint is set, here or by
    AWS_ENDPOINT_URL."""
    ca_bundle: str | None = None
    """Local file with the trusted CA certificates."""
    ca_config_map: ObjectName | None = None
    """ConfigMap with the CA certificates that the pods trust, in `ca.crt`."""
    sse: Literal["AES256", "aws:kms"] | None = None
    """Server-side encryption of written objects."""
    sse_kms_key_id: str | None = None
    """KMS key for `aws:kms`."""
    secret: ObjectName | None = None
    """Kubernetes Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, optionally, AWS_SESSION_TOKEN."""
    service_account: ObjectName | None = None
    """Kubernetes service account with permission to access the bucket, instead of a Secret."""

    @field_validator("endpoint_url", "launcher_endpoint_url")
    @classmethod
    def _without_secrets(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("must have the form http://host:port or https://host")
        if url is not None and urlsplit(url).username is not None:
            # `_describe` does not show the value of an error of this type
            raise PydanticCustomError("secret", "a spec must not contain secrets; set credentials in the environment")
        return url

    @classmethod
    def from_environment(cls) -> Self:
        """Read the storage section of this pod's environment. Raises `SpecError` if it is invalid."""
        text = os.environ.get(contract.STORAGE_ENV, "{}")
        try:
            return cls.model_validate_json(text)
        except ValueError as error:
            message = f"{contract.STORAGE_ENV}: must be the JSON of a spec's storage section"
            raise SpecError(message, hint=str(error)) from error

    @classmethod
    def known_from_json(cls, text: str) -> Self:
        """Parse the JSON of a storage section, ignoring unknown fields: a newer launcher may have written it. Raises
        `ValueError`."""
        given = documents.from_json(text)
        return cls.model_validate({key: given[key] for key in cls.model_fields if key in given})

    def seen_by_launcher(self) -> Self:
        """Return the section with the launcher's endpoint; in a pod of the cluster, with the pods' own."""
        if os.environ.get(contract.IN_CLUSTER_ENV):
            return self.model_copy(update={"ca_bundle": None})
        return self.model_copy(update={"endpoint_url": self.launcher_endpoint_url or self.endpoint_url})
