"""Open the store of a URL: `s3://bucket/prefix`, `file:///folder` or a plain path."""

from cpmbee_job.errors import NotFoundError, SpecError
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import ObjectInfo, Store
from cpmbee_job.store.files import FileStore


def open_store(url: str, storage: StorageSpec | None = None) -> Store:
    """Open the store of a folder: `s3://bucket/prefix`, `file:///folder` or a plain path."""
    scheme, separator, _ = url.partition("://")
    if separator and scheme == "s3":
        from cpmbee_job.store.s3.bucket import S3Store  # import boto3 only if it is used

        return S3Store(url, storage or StorageSpec())
    if separator and scheme != "file":
        raise SpecError(
            f"{url}: unsupported scheme '{scheme}://'", hint="use s3://bucket/folder, file:///folder or a path"
        )
    return FileStore(url)


def open_object(url: str, storage: StorageSpec | None = None) -> tuple[Store, str]:
    """Return the store of the folder that contains the object at `url`, and the object's key in it."""
    scheme, separator, path = url.rpartition("://")
    folder, slash, name = path.rstrip("/").rpartition("/")
    if not name or (scheme == "s3" and not folder):
        raise SpecError(f"{url}: names no object", hint="use s3://bucket/folder/name, file:///folder/name or a path")
    return open_store(scheme + separator + (folder or slash or "."), storage), name


def list_objects(url: str, storage: StorageSpec | None = None) -> tuple[Store, list[ObjectInfo]]:
    """Return the object that a user's URL names, or all objects in the folder that it names and in its subfolders,
    sorted by key, without names that start with a dot or an underscore. Raises `NotFoundError` if there are none."""
    is_bucket = url.startswith("s3://") and "/" not in url.removeprefix("s3://")
    if not url.endswith("/") and not is_bucket:
        store, name = open_object(url, storage)
        found = store.info(name) if name not in (".", "..") else None
        if found is not None:
            return store, [found]
    store = open_store(url, storage)
    objects = [o for o in store.list() if not any(part.startswith((".", "_")) for part in o.key.split("/"))]
    if not objects:
        raise NotFoundError(f"{url}: no such object or folder", hint="name an object, or a folder that contains some")
    return store, objects
