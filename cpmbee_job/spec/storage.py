"""How the object store is reached."""

import os
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from cpmbee_job import documents
from cpmbee_job.errors import SpecError
from cpmbee_job.process import contract
from cpmbee_job.spec.types import ObjectName, Section


class StorageSpec(Section):
    endpoint_url: str | None = Field(None, description="S3 endpoint as pods see it; default: AWS's.")
    launcher_endpoint_url: str | None = Field(
        None, description="The same server as the launcher sees it, where that differs."
    )
    region: str | None = Field(None, description="Region; default: the credential chain's.")
    path_style: Literal["auto"] | bool = Field(
        "auto",
        description="Bucket in the path instead of the host name; `auto`: where an endpoint is set, here or by "
        "AWS_ENDPOINT_URL.",
    )
    ca_bundle: str | None = Field(None, description="File of this machine with the CA certificates to trust.")
    ca_config_map: ObjectName | None = Field(
        None, description="ConfigMap of the cluster whose `ca.crt` holds the CA certificates that pods trust."
    )
    sse: Literal["AES256", "aws:kms"] | None = Field(None, description="Server-side encryption of what is written.")
    sse_kms_key_id: str | None = Field(None, description="Key for `aws:kms`.")
    secret: ObjectName | None = Field(
        None,
        description="Kubernetes Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if any, AWS_SESSION_TOKEN.",
    )
    service_account: ObjectName | None = Field(
        None, description="Kubernetes service account that carries the rights instead."
    )

    @field_validator("endpoint_url", "launcher_endpoint_url")
    @classmethod
    def _without_secrets(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("needs the form http://host:port or https://host")
        if url is not None and urlsplit(url).username is not None:
            # a type of its own, by which `_describe` knows not to show the value
            raise PydanticCustomError("secret", "a spec holds no secrets; give credentials by the environment")
        return url

    @classmethod
    def from_environment(cls) -> Self:
        """How this pod reaches the object store. Raises `SpecError` if the variable holds no storage section."""
        text = os.environ.get(contract.STORAGE_ENV, "{}")
        try:
            return cls.model_validate_json(text)
        except ValueError as error:
            message = f"{contract.STORAGE_ENV}: not the JSON of a spec's storage section"
            raise SpecError(message, hint=str(error)) from error

    @classmethod
    def known_from_environment(cls) -> Self:
        """The same from a launcher that may be newer: unknown fields are ignored. Raises `ValueError`."""
        return cls.known_from_json(os.environ.get(contract.STORAGE_ENV, "{}"))

    @classmethod
    def known_from_json(cls, text: str) -> Self:
        """From JSON of a version that may be newer: unknown fields are ignored. Raises `ValueError`."""
        given = documents.from_json(text)
        return cls.model_validate({key: given[key] for key in cls.model_fields if key in given})

    def seen_by_launcher(self) -> Self:
        """The same server as this machine reaches it; in a pod of the cluster, as any pod does."""
        if os.environ.get(contract.IN_CLUSTER_ENV):
            return self.model_copy(update={"ca_bundle": None})
        return self.model_copy(update={"endpoint_url": self.launcher_endpoint_url or self.endpoint_url})
