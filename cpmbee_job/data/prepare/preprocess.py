"""Validate the files of a folder and store their examples, in place of the original's preprocess_dataset.py."""

import re
from collections import Counter
from dataclasses import replace

from cpmbee_job.data.dataset.index import Index
from cpmbee_job.data.prepare.prepare import Preparation, prepare
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.errors import DataError
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store


def preprocess(folder: Preparation, output_url: str) -> dict[str, Index]:
    """Prepare each file of a folder in `<output_url>/<file's stem>/`; returns the indexes by folder.

    With a tokenizer each example is encoded too, which finds examples that can't be encoded and counts tokens. Data of
    another input in those folders is replaced.
    """
    source = folder.source
    if source.kind != "raw":
        raise DataError(f"{source.url}: not raw records but a dataset", hint="train on it as it is")
    stems = Counter(_stem(info.key) for info in source.listing)
    repeated = [stem for stem, count in stems.items() if count > 1]
    if repeated:
        raise DataError(
            f"{source.url}: several files would become {output_url}/{repeated[0]}/", hint="rename one of them"
        )
    indexes: dict[str, Index] = {}
    for info in source.listing:
        url = f"{output_url.rstrip('/')}/{_stem(info.key)}"
        file = replace(open_source(f"{source.store.url}/{info.key}", folder.storage), ignored=source.ignored)
        out = open_store(url, folder.storage)
        indexes[url] = prepare(replace(folder, source=file), out)
        _remove_stale(out, folder.shard_prefix, indexes[url])
    return indexes


def _remove_stale(store: Store, prefix: str, index: Index) -> None:
    """Delete shards of an earlier, larger input with the same prefix that the index does not list."""
    listed = {part.key for part in index.parts}
    for info in list(store.list(f"{prefix}-")):
        numbered = re.fullmatch(r"-(\d{5,})\.(arrow|json)", info.key.removeprefix(prefix))
        if numbered and f"{prefix}-{numbered[1]}.arrow" not in listed:
            store.delete(info.key)


def _stem(key: str) -> str:
    return re.sub(r"(\.[a-z]+)?(\.gz|\.zst)?$", "", key)
