"""List and abort incomplete multipart uploads."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from botocore import exceptions as boto

from cpmbee_job.store.base import Leftover
from cpmbee_job.store.s3.responses import error_code

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def find_leftovers(client: "S3Client", bucket: str, prefix: str) -> Iterator[Leftover]:
    """Yield the incomplete uploads below a prefix, dated by their last part, since an upload may take days."""
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    for upload in [upload for page in pages for upload in page.get("Uploads", ())]:
        key, upload_id = upload["Key"], upload["UploadId"]
        try:
            found = client.get_paginator("list_parts").paginate(Bucket=bucket, Key=key, UploadId=upload_id)
            parts = [part for page in found for part in page.get("Parts", ())]
        except boto.ClientError as error:
            if error_code(error) != "NoSuchUpload":  # else it was just completed
                raise
            continue
        times = [upload["Initiated"], *(part["LastModified"] for part in parts)]
        size = sum(part["Size"] for part in parts)
        yield Leftover(key.removeprefix(prefix), size, max(time.timestamp() for time in times), upload_id)


def discard_leftover(client: "S3Client", bucket: str, key: str, upload_id: str) -> None:
    """Abort the upload, if it still exists."""
    try:
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
    except boto.ClientError as error:
        if error_code(error) != "NoSuchUpload":
            raise
