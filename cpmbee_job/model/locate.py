"""Resolve the path or URL of a model or delta to files of this machine."""

from pathlib import Path

from cpmbee_job import documents
from cpmbee_job.errors import NotFoundError
from cpmbee_job.model.lora import Delta, read_delta
from cpmbee_job.model.weights.model_folder import ModelFiles, find_model
from cpmbee_job.process.contract import default_cache_dir
from cpmbee_job.run.deltas import DELTA_SUFFIXES, best_prefix
from cpmbee_job.run.keys import DELTA_MANIFEST
from cpmbee_job.run.model_files import CONFIG, SAFETENSORS_INDEX, VOCABULARY, is_weights
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import Progress, no_progress
from cpmbee_job.store.cache import fetch_folder
from cpmbee_job.store.ranges import CachedObject
from cpmbee_job.store.urls import open_object, open_store


def fetch_model(url: str, storage: StorageSpec | None = None) -> ModelFiles:
    """Return the files of the model folder at `url`. Of a model in an object store, small files are copied to the
    cache; weights are read by ranges, which the cache keeps.

    Raises `NotFoundError` if it does not exist, `ModelError` for a folder that is not a model.
    """
    cache, store = default_cache_dir(), open_store(url, storage)
    folder = fetch_folder(url, storage, cache, only={CONFIG, VOCABULARY, SAFETENSORS_INDEX})
    if store.local_path(CONFIG) is not None:
        return find_model(folder)
    return find_model(
        folder, {found.key: CachedObject(store, found, cache) for found in store.list() if is_weights(found.key)}
    )


def fetch_delta(url: str, storage: StorageSpec | None = None, progress: Progress = no_progress) -> Delta:
    """Read the delta at `url`: a delta folder, a file in the original's format, or a run's folder (its best delta).

    Raises `NotFoundError` if it does not exist, `ModelError` for anything that is not a delta.
    """
    if url.endswith(DELTA_SUFFIXES):
        return read_delta(_fetch_file(url, storage, progress))
    return read_delta(fetch_folder(delta_folder(url, storage), storage, default_cache_dir(), progress))


def delta_folder(url: str, storage: StorageSpec | None = None) -> str:
    """Return the URL of the delta folder: `url` itself, or the best delta of the run's folder at `url`."""
    store = open_store(url, storage)
    prefix = best_prefix(store)
    return f"{store.url}/{prefix}" if prefix else url


def _fetch_file(url: str, storage: StorageSpec | None, progress: Progress) -> Path:
    store, key = open_object(url, storage)
    local = store.local_path(key)
    if local is not None:
        if not local.is_file():
            raise NotFoundError(f"{url}: no such file")
        return local
    found = store.info(key)
    if found is None:
        raise NotFoundError(f"{url}: no such object")
    path = default_cache_dir() / "files" / documents.digest([url, found.size, found.etag]) / key
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        if store.info(DELTA_MANIFEST) is not None:
            store.download(DELTA_MANIFEST, path.with_name(DELTA_MANIFEST))
        store.download(key, path, progress)
    return path
