"""Write results to stdout, a file or a folder, locally or in S3. A target appears complete or does not appear."""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpmbee_job.errors import RefusedError
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import Store
from cpmbee_job.store.files import FileStore, translate_os_errors
from cpmbee_job.store.urls import open_object, open_store


@contextmanager
def lines_to(url: str | None, storage: StorageSpec) -> Iterator[Callable[[Any], None]]:
    """Yield a function that writes a document as a JSON line: to stdout, or to `url`, which appears on success."""
    if url is None:
        yield lambda document: _write(sys.stdout.buffer.write, document)
        sys.stdout.flush()
        return
    store, key = open_object(url, storage)
    with _draft() as folder:
        path = folder / "lines"
        with path.open("wb") as file:
            yield lambda document: _write(file.write, document)
        store.upload(path, key)


def copy_lines(source: Store, key: str, url: str | None, storage: StorageSpec) -> None:
    """Copy an object of `source` to stdout, or to the object at `url`."""
    with _draft() as folder:
        path = folder / "lines"
        source.download(key, path)
        if url is None:
            with path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()
        else:
            store, target = open_object(url, storage)
            store.upload(path, target)


def require_apart(output: str | None, source: str, storage: StorageSpec) -> None:
    """Raises `RefusedError` if writing `output` could overwrite the input `source`, a file or a folder."""
    if output is None:
        return
    target, origin = _absolute(output, storage), _absolute(source, storage)
    if target == origin or target.startswith(f"{origin}/"):
        raise RefusedError(f"{output}: would overwrite the input {source}", hint="choose another output")


@contextmanager
def new_folder(url: str, storage: StorageSpec, *, last: str) -> Iterator[Path]:
    """Yield a folder to fill. It appears at `url` when the block succeeds; the file `last` is written last.

    Raises `RefusedError` if `url` exists and is not empty.
    """
    store = open_store(url, storage)
    if isinstance(store, FileStore):
        with translate_os_errors(store.root):
            if store.root.exists() and (store.root.is_file() or any(store.root.iterdir())):
                raise RefusedError(f"{url}: exists already", hint="choose a new folder")
            store.root.parent.mkdir(parents=True, exist_ok=True)
            with _draft(store.root.parent) as folder:
                yield folder
                folder.rename(store.root)
        return
    if next(store.list(), None) is not None:
        raise RefusedError(f"{url}: exists already", hint="choose a new folder")
    with _draft() as folder:
        yield folder
        for path in sorted(folder.iterdir(), key=lambda path: (path.name == last, path.name)):
            store.upload(path, path.name)


def _absolute(url: str, storage: StorageSpec) -> str:
    store = open_store(url, storage)
    return str(store.root) if isinstance(store, FileStore) else store.url


@contextmanager
def _draft(parent: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder in a temporary one, on the file system of `parent` so that it can be renamed into it."""
    with tempfile.TemporaryDirectory(prefix=".cpmbee-", dir=parent) as name:
        folder = Path(name) / "new"
        folder.mkdir()
        yield folder


def _write(write: Callable[[bytes], Any], document: Any) -> None:
    write(json.dumps(document, ensure_ascii=False, allow_nan=False).encode() + b"\n")
