"""What can go wrong, as a user sees it: every class carries the exit code that the command line ends with.

CpmbeeError                    1    a fault of ours, or of something we could not name better
├── UsageError                 2    the command line makes no sense
├── InvalidError               3    the spec, the data or the model is wrong
│   ├── SpecError
│   │   └── RejectedError           the Kubernetes API refuses what the spec makes
│   ├── DataError
│   └── ModelError
├── PreflightError             4    something that the job needs is not there (a bucket, a permission)
│   └── StoreError                  the object store answered with an error that retries did not mend
│       ├── AccessError             it does not let us in: credentials, rights, no such bucket
│       ├── DamagedError            what is stored is not what was written
│       └── DiskError               this machine's file system refuses
│   └── ClusterError                the Kubernetes API refused
│       └── UnreachableError        ... or did not answer: it may, later
├── RefusedError               5    it would overwrite or contradict something (name in use, newer writer)
│   └── ConflictError               a conditional put found another object there
├── JobFailedError           100    the job ended, and not well
├── UnfinishedError          101    the job has not ended yet
├── NotFoundError            102    no such run or object
└── CancelledError           103    stopped on request
"""

from collections.abc import Sequence
from typing import ClassVar


class CpmbeeError(Exception):
    """Base of all errors that end a command in words instead of a traceback.

    `message` says what is wrong and where; `hint`, if any, how to mend it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(CpmbeeError):
    exit_code = 2


class InvalidError(CpmbeeError):
    exit_code = 3


class SpecError(InvalidError):
    """The job spec; the message names the dotted key."""


class RejectedError(SpecError):
    """The Kubernetes API refuses an object. `causes`: (path in the object, what is wrong with it)."""

    def __init__(self, message: str, causes: Sequence[tuple[str, str]] = (), *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.causes = tuple(causes)


class DataError(InvalidError):
    """A row, a file of rows or a data set; the message names file and line."""


class ModelError(InvalidError):
    """A model folder, its configuration, its weights, or the numbers that come out of it."""


class PreflightError(CpmbeeError):
    exit_code = 4


class StoreError(PreflightError):
    """The object store failed; the message keeps its own words."""


class AccessError(StoreError):
    """The store does not let us in: no credentials or wrong ones, no right, no such bucket, no trust."""


class DamagedError(StoreError):
    """What is stored is not what was written: trying again can't help, an older copy may."""


class DiskError(StoreError):
    """This machine's file system refuses: full, not writable. It will until somebody mends it."""


class ClusterError(PreflightError):
    """The Kubernetes API refused (credentials, permissions, quota); the message keeps its own words."""


class UnreachableError(ClusterError):
    """The Kubernetes API did not answer, or not well. It says nothing about any job, and may be over soon."""


class RefusedError(CpmbeeError):
    exit_code = 5


class ConflictError(RefusedError):
    """A conditional put lost: the object exists already, or is no longer the one that was read."""


class JobFailedError(CpmbeeError):
    exit_code = 100


class UnfinishedError(CpmbeeError):
    exit_code = 101


class NotFoundError(CpmbeeError):
    exit_code = 102


class CancelledError(CpmbeeError):
    exit_code = 103
