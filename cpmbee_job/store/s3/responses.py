"""Translate the errors of boto3 to errors of this package. They never contain credentials."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions as boto

from cpmbee_job.errors import AccessError, CpmbeeError, NotFoundError, SpecError, StoreError

BROKEN_BODY = (
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
    boto.ReadTimeoutError,
    boto.ConnectionClosedError,
    boto.FlexibleChecksumError,
)
NO_SUCH_KEY = {"NoSuchKey", "404", "NotFound"}


class BrokenBodyError(Exception):
    """A response body is truncated or altered. Internal to the store."""


def error_code(error: Exception) -> str:
    """Return the server's error code, "" if the error is not the server's."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, boto.ClientError) else ""


@contextmanager
def translate_s3_errors(name: str, endpoint: str, no_such_bucket: AccessError) -> Iterator[None]:
    """Translate the errors of boto3 in the block; messages name the object and the endpoint."""
    try:
        yield
    except CpmbeeError:
        raise
    except boto.ClientError as error:
        code = error_code(error)
        if code == "NoSuchBucket":
            raise no_such_bucket from error
        if code in NO_SUCH_KEY:
            raise NotFoundError(f"{name}: no such object") from error
        message = error.response.get("Error", {}).get("Message") or "no message"
        hint = _hint(error)
        kind = StoreError if hint is None else AccessError
        raise kind(f"{name}: {endpoint} answered {code}: {message}", hint=hint) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
        kind = StoreError if isinstance(error, boto.CredentialRetrievalError) else AccessError
        raise kind(
            f"{name}: no credentials for {endpoint}: {error}",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or use a role",
        ) from error
    except boto.SSLError as error:
        raise AccessError(
            f"{name}: the certificate of {endpoint} is not trusted: {_reason(error)}",
            hint="set storage.ca_bundle to a file with your CA's certificate",
        ) from error
    except (boto.HTTPClientError, boto.ConnectionError) as error:
        raise StoreError(
            f"{name}: {endpoint} cannot be reached: {_reason(error)}",
            hint="check storage.endpoint_url, the network and HTTPS_PROXY/NO_PROXY",
        ) from error
    except boto.ParamValidationError as error:
        raise SpecError(f"{name}: not a valid name in S3: {_reason(error)}") from error
    except boto.BotoCoreError as error:
        raise StoreError(f"{name}: {_reason(error)}") from error


def tries(attempts: int) -> Iterator[bool]:
    """Yield for each attempt whether it is the last one. Wait between attempts: exponential backoff with jitter."""
    for attempt in range(1, attempts + 1):
        yield attempt == attempts
        time.sleep(random.uniform(0.5, 1) * min(0.1 * 2**attempt, 5))


def _hint(error: boto.ClientError) -> str | None:
    code, status = error_code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code in {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}:
        return "the credentials are wrong or expired: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE"
    if code in {"RequestTimeTooSkewed", "RequestExpired"}:
        return "the clock of this machine is wrong"
    if code in {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}:
        return "set storage.region to the bucket's region"
    return "these credentials have no permission for this operation" if status in (401, 403) else None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
