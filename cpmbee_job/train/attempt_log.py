"""The log of an attempt, to be uploaded with the run. Needs no torch.

The log is a file in the entrypoint's folder, so that the entrypoint can upload the log of a worker that was killed.
"""

import contextlib
import logging
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import IO

from cpmbee_job.errors import StoreError
from cpmbee_job.process import contract
from cpmbee_job.run import keys
from cpmbee_job.store.base import Store
from cpmbee_job.store.retry import with_retries
from cpmbee_job.train.failures import FAILURE_ENV

MAX_LEFTOVER_BYTES = 1 << 20
"""Bytes that are uploaded of a killed worker's log, from its end."""


class AttemptLog:
    """Copies this process's log to a file: a temporary one if there is no entrypoint."""

    def __init__(self, attempt: int) -> None:
        self._attempt = attempt
        failure_file = os.environ.get(FAILURE_ENV)
        self._path = None if failure_file is None else Path(failure_file).with_name(f"attempt-{attempt}.log")
        self._file: IO[str] = (
            self._path.open("w+", encoding="utf-8")
            if self._path is not None
            else tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (open until the process ends)
        )
        handler = logging.StreamHandler(self._file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(handler)

    def upload(self, store: Store) -> None:
        self._file.seek(0)
        key = keys.log_key(contract.pod_name(), self._attempt)
        with_retries(partial(store.put, key, self._file.read().encode()))
        if self._path is not None:
            self._path.unlink(missing_ok=True)  # the entrypoint uploads the files that still exist


def upload_leftover_logs(folder: Path, store: Store) -> None:
    """Upload the logs of killed workers from the entrypoint's folder, without retries, and delete the files."""
    for file in folder.glob("attempt-*.log"):
        content = file.read_bytes()[-MAX_LEFTOVER_BYTES:]
        with contextlib.suppress(StoreError):
            store.put(keys.log_key(contract.pod_name(), int(file.stem.partition("-")[2])), content)
        file.unlink()
