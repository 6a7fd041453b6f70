"""The init step of a training pod: `python -m cpmbee_job.data RUN_URL`.

A permanent fault (bad data, no vocabulary) ends the run in the store, and this process with 0: the training container
then ends with the run's exit code, where an init container that fails would be started for ever.
"""

import os
import signal
import sys

from rich.console import Console

from cpmbee_job import contract, lifeline
from cpmbee_job.data.job import describe, prepare_bar, prepare_job
from cpmbee_job.errors import CancelledError, CpmbeeError, InvalidError
from cpmbee_job.run import Run
from cpmbee_job.spec import StorageSpec

INDEX_ENV = "CPMBEE_POD_INDEX"
"""The pod's index; each pod starts at its own share of the pieces."""


def main() -> None:
    lifeline.end_with(lifeline.owner())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(CancelledError.exit_code))  # scratch files go
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        storage = StorageSpec.model_validate_json(os.environ.get(contract.STORAGE_ENV, "{}"))
        run = Run.open(sys.argv[1], storage)
        if run.result() is not None:
            return
        try:
            prepare_run(run, console)
        except InvalidError as error:
            run.fail(error)
            if lifeline.owner() is None:  # else the one that started us tells it
                console.print(f"error: {error}", style="red", markup=False)
    except CpmbeeError as error:
        console.print(f"error: {error}", style="red", markup=False)
        sys.exit(error.exit_code)


def prepare_run(run: Run, console: Console, *, vocab: bytes | None = None) -> None:
    """Prepare the data of a run and bind the run to it. See `prepare_job` for `vocab`."""
    with prepare_bar(console) as progress:
        record = prepare_job(
            run.spec,
            run.storage,
            vocab=vocab,
            pod_index=int(os.environ.get(INDEX_ENV, "0")),
            num_pods=run.spec.workers.count,
            progress=progress,
        )
    run.bind_data(record)
    for split in ("train", "eval"):
        if record[split] is not None:
            console.print(describe(split, record[split]), markup=False)


if __name__ == "__main__":
    main()
