"""What boto3 says went wrong, in words of ours; credentials are never part of it."""

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
    """What came is not what was stored; never leaves the store."""


def error_code(error: Exception) -> str:
    """The server's name for it, empty where it is not the server that failed."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, boto.ClientError) else ""


def no_bucket(url: str, bucket: str, place: str) -> AccessError:
    return AccessError(
        f"{url}: there is no bucket '{bucket}' at {place}",
        hint="create it, or mend the URL or storage.endpoint_url",
    )


@contextmanager
def explained_s3(name: str, place: str, no_such_bucket: AccessError) -> Iterator[None]:
    """Turns what boto3 says about the object `name` at the server `place` into an error of ours."""
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
        words = error.response.get("Error", {}).get("Message") or "no reason given"
        hint = _hint(error)
        kind = StoreError if hint is None else AccessError
        raise kind(f"{name}: {place} answered {code}: {words}", hint=hint) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
        kind = StoreError if isinstance(error, boto.CredentialRetrievalError) else AccessError
        raise kind(
            f"{name}: no credentials for {place}: {error}",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or use a role",
        ) from error
    except boto.SSLError as error:
        raise AccessError(
            f"{name}: the certificate of {place} is not trusted: {_reason(error)}",
            hint="name the file with your CA's certificate in storage.ca_bundle",
        ) from error
    except (boto.HTTPClientError, boto.ConnectionError) as error:
        raise StoreError(
            f"{name}: {place} can't be reached: {_reason(error)}",
            hint="check storage.endpoint_url, the network and HTTPS_PROXY/NO_PROXY",
        ) from error
    except boto.ParamValidationError as error:
        raise SpecError(f"{name}: no name that S3 allows: {_reason(error)}") from error
    except boto.BotoCoreError as error:
        raise StoreError(f"{name}: {_reason(error)}") from error


def pause(attempt: int) -> None:
    """Waits longer from attempt to attempt, never as long as another does."""
    time.sleep(random.uniform(0.5, 1) * min(0.1 * 2**attempt, 5))


def _hint(error: boto.ClientError) -> str | None:
    code, status = error_code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code in {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}:
        return "the credentials are wrong or too old: see AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE"
    if code in {"RequestTimeTooSkewed", "RequestExpired"}:
        return "the clock of this machine is wrong"
    if code in {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}:
        return "set storage.region to the bucket's region"
    return "these credentials may not do that here" if status in (401, 403) else None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
