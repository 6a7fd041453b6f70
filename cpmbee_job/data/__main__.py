"""The init step of a training pod: `python -m cpmbee_job.data RUN_URL`.

A permanent error (invalid data, missing vocabulary, incompatible launcher) is recorded in the run, and this process
exits with 0: the training container then exits with the run's exit code. A failing init container would be restarted
forever. If the object store does not respond, the step retries; if it denies access, the step fails.
"""

import os
import signal
import sys
from contextlib import suppress
from functools import partial

from rich.console import Console

from cpmbee_job.data.prepare.job_data import describe, prepare_bar, prepare_job
from cpmbee_job.errors import (
    AccessError,
    CancelledError,
    ConflictError,
    CpmbeeError,
    DamagedError,
    DiskError,
    InvalidError,
    NotFoundError,
)
from cpmbee_job.process import contract, parent_watch, pod
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run, fail_unread
from cpmbee_job.spec import StorageSpec, parse_spec
from cpmbee_job.store.retry import with_retries
from cpmbee_job.store.urls import open_store


def main() -> None:
    parent_watch.watch(parent_watch.parent())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(CancelledError.exit_code))  # lets temporary files be removed
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with_retries(partial(execute, sys.argv[1], console), permanent=(AccessError, DamagedError, DiskError))
    except CpmbeeError as error:
        pod.write_termination_message(str(error))
        console.print(f"error: {error}", style="red", markup=False)
        sys.exit(error.exit_code)


def execute(url: str, console: Console) -> None:
    """Prepare the data of the run at `url` unless the run has ended. Permanent errors fail the run."""
    try:
        pod.require_contract()
        run = open_run(url, StorageSpec.from_environment())
    except InvalidError as error:
        storage = StorageSpec.known_from_json(os.environ.get(contract.STORAGE_ENV, "{}"))
        fail_unread(open_store(url, storage), error)
        _tell(error, console)
        return
    if run.result() is None:
        try:
            prepare_run(run, console)
        except (InvalidError, NotFoundError) as error:
            run.fail(error)
            _tell(error, console)


def open_run(url: str, storage: StorageSpec) -> Run:
    """Open the run at `url`. If it does not exist, the first pod creates it with the manifest's spec."""
    try:
        return Run.open(url, storage)
    except NotFoundError:
        text = os.environ.get(contract.SPEC_ENV)
        if text is None:
            raise
    spec = parse_spec(text, source=contract.SPEC_ENV)
    with suppress(ConflictError):  # another pod created it
        open_store(url, storage).put(keys.SPEC, spec.to_yaml().encode(), if_none_match=True)
    return Run.open(url, storage)


def prepare_run(run: Run, console: Console, *, vocab: bytes | None = None) -> None:
    """Prepare the data of a run and bind the run to it. `vocab` defaults to the model folder's vocab.txt."""
    with prepare_bar(console) as progress:
        record = prepare_job(
            run.spec,
            run.storage,
            vocab=vocab,
            pod_index=int(os.environ.get(contract.POD_INDEX_ENV, "0")),
            num_pods=run.spec.workers.count,
            progress=progress,
        )
    run.bind_data(record)
    for split in ("train", "eval"):
        if record[split] is not None:
            console.print(describe(split, record[split]), markup=False)


def _tell(error: CpmbeeError, console: Console) -> None:
    pod.write_termination_message(str(error))
    if parent_watch.parent() is None:  # otherwise the parent process reports it
        console.print(f"error: {error}", style="red", markup=False)


if __name__ == "__main__":
    main()
