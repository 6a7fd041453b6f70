"""Make shards in this process, or in several worker processes."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_exit

from cpmbee_job.data.dataset.index import ShardInfo
from cpmbee_job.data.prepare.shard_maker import ShardMaker
from cpmbee_job.data.read.sources import SourcePiece
from cpmbee_job.errors import CpmbeeError
from cpmbee_job.store.base import Progress


def make_shards(
    maker: ShardMaker, pieces: list[SourcePiece], workers: int, on_bytes: Progress
) -> Iterator[tuple[int, ShardInfo]]:
    """Yield the number and the shard of each piece as it completes.

    `on_bytes` receives the bytes read of the current piece, if this process makes the shards.
    """
    if workers > 1 and len(pieces) > 1:
        yield from _in_processes(maker, pieces, workers)
        return
    for piece in pieces:
        yield piece.number, maker.make(piece, _accumulated(on_bytes, piece.num_bytes))


def _accumulated(report: Progress, most: int) -> Progress:
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done = min(done + num_bytes, most)
        report(done)

    return count


def _in_processes(maker: ShardMaker, pieces: list[SourcePiece], workers: int) -> Iterator[tuple[int, ShardInfo]]:
    """If several pieces fail, the error of the first one is raised."""
    # The fork server imports everything once. Forking this process would copy the locks of its threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    pool = ProcessPoolExecutor(
        min(workers, len(pieces)), context, initializer=_start_worker, initargs=(maker, dict(os.environ))
    )
    waiting = iter(pieces)
    running: dict[Future[ShardInfo], int] = {}
    errors: dict[int, BaseException] = {}
    try:
        while True:
            while len(running) < 2 * workers and not errors and (piece := next(waiting, None)) is not None:
                running[pool.submit(_make_shard, piece)] = piece.number
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
        hint = "it probably ran out of memory: prepare with fewer workers; completed shards are kept"
        raise CpmbeeError("a worker process was killed while preparing data", hint=hint) from error
    finally:
        pool.shutdown(cancel_futures=True)


_maker: ShardMaker | None = None  # set in worker processes


def _start_worker(maker: ShardMaker, environment: dict[str, str]) -> None:
    global _maker
    os.environ.clear()  # the fork server's environment is outdated
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process group; the parent stops its workers
    _maker = maker
    gc.freeze()  # garbage collections need not scan the imported modules
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # A killed parent does not close its queue, so its workers would wait for work forever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_exit([parent.sentinel])
    os._exit(1)


def _make_shard(piece: SourcePiece) -> ShardInfo:
    assert _maker is not None
    return _maker.make(piece)
