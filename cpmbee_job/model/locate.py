"""Resolve the path or URL of a model or delta to files of this machine."""

from cpmbee_job.errors import NotFoundError
from cpmbee_job.model.lora import Delta, read_delta
from cpmbee_job.model.weights.model_folder import ModelFiles, find_model
from cpmbee_job.process.contract import default_cache_dir
from cpmbee_job.run.deltas import DELTA_SUFFIXES, delta_folder
from cpmbee_job.run.keys import DELTA_MANIFEST
from cpmbee_job.run.model_files import CONFIG, SAFETENSORS_INDEX, VOCABULARY, is_weights
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.cache import CachedObject, fetch_folder
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


def fetch_delta(url: str, storage: StorageSpec | None = None) -> Delta:
    """Read the delta at `url`: a delta folder, a file in the original's format, or a run's folder (its best delta).

    Raises `NotFoundError` if it does not exist, `ModelError` for anything that is not a delta.
    """
    if url.endswith(DELTA_SUFFIXES):
        store, key = open_object(url, storage)
        if store.info(key) is None:
            raise NotFoundError(f"{url}: no such file")
        return read_delta(fetch_folder(store.url, storage, only={key, DELTA_MANIFEST}) / key)
    return read_delta(fetch_folder(delta_folder(url, storage), storage))
