"""The options that say how to reach the object store, shared by all verbs that read or write there."""

import os
from typing import Annotated

import typer

from cpmbee_job.errors import UsageError
from cpmbee_job.process import contract
from cpmbee_job.spec import StorageSpec

EndpointUrl = Annotated[
    str | None,
    typer.Option("--endpoint-url", envvar="AWS_ENDPOINT_URL", help="Address of the S3 server, where it is not AWS's."),
]
PathStyle = Annotated[
    bool | None,
    typer.Option(
        "--path-style/--host-style",
        help="Put buckets into the path of S3 addresses, or the host name. Default: path where an address is given.",
        show_default=False,
    ),
]


def storage(endpoint_url: str | None, path_style: bool | None) -> StorageSpec:
    """The settings of `CPMBEE_STORAGE` (as pods have them), with what the options say in place of theirs."""
    text = os.environ.get(contract.STORAGE_ENV, "{}")
    try:
        known = StorageSpec.model_validate_json(text)
    except ValueError as error:
        raise UsageError(
            f"{contract.STORAGE_ENV}: not the JSON of a spec's storage section", hint=str(error)
        ) from error
    given = {"endpoint_url": endpoint_url, "path_style": path_style}
    return known.model_copy(update={key: value for key, value in given.items() if value is not None})
