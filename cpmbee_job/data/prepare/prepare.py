"""From rows of text to a prepared data set: fixed pieces, a deterministic part for each, the index last.

Every part has a small record beside it, written after it, with its hash and counts. Whoever finds a piece's record
leaves that piece alone; whoever finds them all writes the index. So any number of processes and pods can work on one
data set without knowing of each other, and what one that was killed has left undone, the next run does.
"""

import gc
import hashlib
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path

from cpmbee_job import documents
from cpmbee_job.data.dataset.index import INDEX, VERSION, Index, PartInfo, UnknownVersionError
from cpmbee_job.data.prepare.parts import Job, PartMaker, PrepareSettings
from cpmbee_job.data.read.reformat import converter
from cpmbee_job.data.read.sources import Piece, Source, open_source
from cpmbee_job.errors import CpmbeeError, DataError, NotFoundError
from cpmbee_job.run import keys
from cpmbee_job.spec import StorageSpec
from cpmbee_job.store.base import Progress, Store
from cpmbee_job.store.urls import open_store
from cpmbee_job.store.verified import file_sha256

PrepareProgress = Callable[[int, int, int], None]
"""Called with examples done, bytes of input done, bytes of input in all."""


def no_prepare_progress(_examples: int, _bytes_done: int, _bytes_total: int) -> None:
    """The null `PrepareProgress`."""


def prepared_digest(source: Source, vocab: bytes | None, settings: PrepareSettings) -> str:
    """Names what `prepare` makes of a source; equal digests, equal parts."""
    return documents.digest(
        {
            "version": VERSION,
            "kind": source.kind,
            "listing": source.digest,
            "piece_bytes": source.piece_bytes,
            "vocab": _sha256(vocab),
            "settings": settings.record(),
            "format": _format_digest(settings.format),
        }
    )


def prepare(
    source: Source,
    vocab: bytes | None,
    settings: PrepareSettings,
    out: Store,
    *,
    storage: StorageSpec | None = None,
    workers: int = 1,
    pod_index: int = 0,
    num_pods: int = 1,
    part_name: str = "part",
    progress: PrepareProgress = no_prepare_progress,
) -> Index:
    """Encode and pack all of `source` into the folder `out`; at once where that has been done already.

    `vocab` is the content of `vocab.txt`; only without rows (`max_length` None) may it be missing. Pods begin at
    different pieces. Raises `DataError` that names file, line and reason for rows that settings do not let pass, and
    for a source without a single example; no index is written then.
    """
    job = Job(
        kind=source.kind,
        input_url=source.store.url,
        output_url=out.url,
        storage=storage,
        settings=settings,
        vocab=vocab,
        digest=prepared_digest(source, vocab, settings),
        part_name=part_name,
        window=source.piece_bytes,
    )
    found = _find_index(out)
    if isinstance(found, Index) and found.digest == job.digest:
        return found
    if found is not None:
        out.delete(INDEX)  # first: it must never name parts that are being replaced
    first = pod_index * len(source.pieces) // num_pods
    pieces = [*source.pieces[first:], *source.pieces[:first]]
    parts: dict[int, PartInfo] = {}
    examples = bytes_done = 0
    make = _in_processes if workers > 1 and len(pieces) > 1 else _in_this_process

    def on_bytes(num_bytes: int) -> None:
        progress(examples, min(bytes_done + num_bytes, source.num_bytes), source.num_bytes)

    for number, part in make(job, source.store, out, pieces, workers, on_bytes):
        parts[number] = part
        examples += part.examples
        bytes_done += source.pieces[number].num_bytes
        on_bytes(0)
    index = Index(
        digest=job.digest,
        kind="examples" if settings.max_length is None else "rows",
        settings=settings.record(),
        vocab=_sha256(vocab),
        source=source.url,
        listing=source.digest,
        parts=tuple(parts[number] for number in sorted(parts)),
        ignored=source.ignored,
    )
    if not index.examples:
        skipped = ", ".join(f"{count} {reason}" for reason, count in index.skipped.items())
        raise DataError(f"{source.url}: no examples there{skipped and f'; left out: {skipped}'}")
    out.put(INDEX, index.to_json())
    return index


def prepare_split(
    url: str,
    vocab: bytes,
    settings: PrepareSettings,
    output: str,
    *,
    storage: StorageSpec | None = None,
    workers: int = 1,
    pod_index: int = 0,
    num_pods: int = 1,
    progress: PrepareProgress = no_prepare_progress,
) -> tuple[str, Index]:
    """Prepare a data URL in its folder below `output`; returns the folder's URL and the index."""
    source = open_source(url, storage)
    folder = keys.prepared_url(output, prepared_digest(source, vocab, settings))
    index = prepare(
        source,
        vocab,
        settings,
        open_store(folder, storage),
        storage=storage,
        workers=workers,
        pod_index=pod_index,
        num_pods=num_pods,
        progress=progress,
    )
    return folder, index


def preprocess(
    input_url: str,
    output_url: str,
    output_name: str,
    vocab: bytes | None = None,
    *,
    settings: PrepareSettings | None = None,
    storage: StorageSpec | None = None,
    workers: int = 1,
    progress: PrepareProgress = no_prepare_progress,
) -> dict[str, Index]:
    """Check every file of a folder and write its examples, as they are, to `<output_url>/<file's stem>/`.

    With a vocabulary each example is encoded too: one that can't be is found now, and the index counts tokens. Data
    of another input that lie in those folders are replaced. Returns the indexes by folder.
    """
    whole = open_source(input_url, storage)
    if whole.kind != "raw":
        raise DataError(f"{input_url}: no raw rows, but a data set already", hint="train on it as it is")
    stems = Counter(_stem(info.key) for info in whole.listing)
    twice = [stem for stem, count in stems.items() if count > 1]
    if twice:
        raise DataError(f"{input_url}: several files would become {output_url}/{twice[0]}/", hint="rename one of them")
    indexes: dict[str, Index] = {}
    for info in whole.listing:
        folder = f"{output_url.rstrip('/')}/{_stem(info.key)}"
        source = replace(open_source(f"{whole.store.url}/{info.key}", storage), ignored=whole.ignored)
        out = open_store(folder, storage)
        index = prepare(
            source,
            vocab,
            settings or PrepareSettings(max_length=None),
            out,
            storage=storage,
            workers=workers,
            part_name=output_name,
            progress=progress,
        )
        _remove_stale(out, output_name, index)
        indexes[folder] = index
    return indexes


def _in_this_process(
    job: Job, store: Store, out: Store, pieces: list[Piece], _workers: int, on_bytes: Progress
) -> Iterator[tuple[int, PartInfo]]:
    maker = PartMaker(job, store, out)
    for piece in pieces:
        yield piece.number, maker.make(piece, _summed(on_bytes, piece.num_bytes))


def _summed(report: Progress, most: int) -> Progress:
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done = min(done + num_bytes, most)
        report(done)

    return count


_maker: PartMaker | None = None  # of this process, where it is one that `_in_processes` started


def _in_processes(
    job: Job, _store: Store, _out: Store, pieces: list[Piece], workers: int, _on_bytes: Progress
) -> Iterator[tuple[int, PartInfo]]:
    """Make parts in `workers` processes. Of several pieces with bad rows the first one's error is raised."""
    # A server that has imported all of this once; a fork of this process itself would copy its threads' locks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    pool = ProcessPoolExecutor(
        min(workers, len(pieces)), context, initializer=_start_worker, initargs=(job, dict(os.environ))
    )
    waiting = iter(pieces)
    running: dict[Future[PartInfo], int] = {}
    errors: dict[int, BaseException] = {}
    try:
        while True:
            while len(running) < 2 * workers and not errors and (piece := next(waiting, None)) is not None:
                running[pool.submit(_make_part, piece)] = piece.number
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, error = running.pop(future), future.exception()
                if error is None:
                    yield number, future.result()
                else:
                    errors[number] = error
        if errors:
            raise errors[min(errors)]
    except BrokenProcessPool as error:
        hint = "it probably ran out of memory; prepare with fewer workers, what is done already is kept"
        raise CpmbeeError("a process that prepares data was killed", hint=hint) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(job: Job, environment: dict[str, str]) -> None:
    global _maker
    os.environ.clear()  # the server's is of the time when it was started
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    _maker = PartMaker(job, open_store(job.input_url, job.storage), open_store(job.output_url, job.storage))
    gc.freeze()  # what has been imported stays; looking through all of it again and again takes time
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed parent closes no queue: without this its processes would wait for work for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_end([parent.sentinel])
    os._exit(1)


def _make_part(piece: Piece) -> PartInfo:
    assert _maker is not None
    return _maker.make(piece)


def _find_index(store: Store) -> Index | UnknownVersionError | None:
    try:
        return Index.from_json(store.get(INDEX), f"{store.url}/{INDEX}")
    except NotFoundError:
        return None
    except UnknownVersionError as error:
        return error


def _remove_stale(store: Store, part_name: str, index: Index) -> None:
    """Delete parts of an earlier, larger input under the same name, which the index no longer names."""
    parts = {part.key for part in index.parts}
    for info in list(store.list(f"{part_name}-")):
        numbered = re.fullmatch(r"-(\d{5,})\.(arrow|json)", info.key.removeprefix(part_name))
        if numbered and f"{part_name}-{numbered[1]}.arrow" not in parts:
            store.delete(info.key)


def _stem(key: str) -> str:
    return re.sub(r"(\.[a-z]+)?(\.gz|\.zst)?$", "", key)


def _sha256(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


def _format_digest(format_name: str) -> str | None:
    """Hash of the file that a user's own format is written in: another function makes other examples."""
    converter(format_name)  # imports it
    module = sys.modules.get(format_name.partition(":")[0])
    path = getattr(module, "__file__", None)
    return None if path is None else file_sha256(Path(path))
