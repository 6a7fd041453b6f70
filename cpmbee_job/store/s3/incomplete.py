"""Parts that S3 keeps of uploads which were not completed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from botocore import exceptions as boto

from cpmbee_job.store.base import Leftover

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def find_leftovers(client: "S3Client", bucket: str, prefix: str) -> Iterator[Leftover]:
    """The uploads below a prefix that are not completed, as of their last part: one that takes days is none."""
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    for upload in [upload for page in pages for upload in page.get("Uploads", ())]:
        key, upload_id = upload["Key"], upload["UploadId"]
        try:
            found = client.get_paginator("list_parts").paginate(Bucket=bucket, Key=key, UploadId=upload_id)
            parts = [part for page in found for part in page.get("Parts", ())]
        except boto.ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchUpload":  # it has just become an object
                raise
            continue
        times = [upload["Initiated"], *(part["LastModified"] for part in parts)]
        size = sum(part["Size"] for part in parts)
        yield Leftover(key.removeprefix(prefix), size, max(time.timestamp() for time in times), upload_id)


def discard_leftover(client: "S3Client", bucket: str, key: str, upload_id: str) -> None:
    """Have S3 forget the upload and its parts."""
    try:
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
    except boto.ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchUpload":
            raise
