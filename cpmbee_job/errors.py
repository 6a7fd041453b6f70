"""Errors as a user sees them, and the exit codes of the commands and the containers.

CpmbeeError                 1    internal error; base of all others
├── UsageError              2    invalid command line
├── InvalidError            3    the spec, the data or the model is invalid
│   ├── SpecError
│   │   └── RejectedError        the Kubernetes API rejects a rendered object
│   ├── DataError
│   └── ModelError
├── PreflightError          4    something that the job requires is missing, such as a bucket or a permission
│   ├── StoreError               the object store failed, and retries did not help
│   │   ├── AccessError          access denied: credentials, permissions, missing bucket
│   │   ├── DamagedError         a stored object is corrupt
│   │   └── DiskError            the local file system failed
│   └── ClusterError             the Kubernetes API denied a request
│       └── UnreachableError     the Kubernetes API did not answer
├── RefusedError            5    the command would overwrite or contradict something
│   └── ConflictError            a conditional put found another object
├── JobFailedError        100    the job failed
├── UnfinishedError       101    the job has not ended yet
├── NotFoundError         102    no such run or object
└── CancelledError        103    cancelled or stopped on request
"""

from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """All exit codes, each with its `meaning`. `docs/generate.py` writes them to docs/reference/exit-codes.md."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> "ExitCode":
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    SUCCESS = 0, "success"
    INTERNAL = 1, "internal error"
    USAGE = 2, "invalid command line"
    INVALID = 3, "the spec, the data or the model is invalid"
    PREFLIGHT = 4, "something that the job requires is missing or unreachable, such as a bucket or a permission"
    REFUSED = 5, "refused, because it would overwrite or contradict something"
    STALLED = 75, "a worker was ended by its watchdog (inside a pod only; the entrypoint restarts the workers)"
    JOB_FAILED = 100, "the job failed"
    UNFINISHED = 101, "the job did not end within the time limit"
    NOT_FOUND = 102, "no such run or object"
    CANCELLED = 103, "cancelled or stopped on request"
    INTERRUPTED = 130, "Ctrl-C while watching or waiting; the run continues"
    TERMINATED = 143, "ended by SIGTERM"


RETRYABLE = (ExitCode.PREFLIGHT, ExitCode.TERMINATED)
"""Codes of an inference pod after which its Job starts another one."""
POD_CODES = {code for code in ExitCode if 0 < code < 10} | {ExitCode.NOT_FOUND}
"""Codes with which an inference pod reports an error of its own."""
FINAL = ExitCode.USAGE, ExitCode.INVALID, ExitCode.REFUSED, ExitCode.JOB_FAILED, ExitCode.NOT_FOUND, ExitCode.CANCELLED
"""Codes of a launcher that another attempt cannot change. `docs/generate.py` writes them to the chart."""


class CpmbeeError(Exception):
    """Base of all errors that end a command with a message instead of a traceback. `message` says what is wrong and
    where; the optional `hint` how to fix it. `exit_code` overrides the class's, where a command passes on the exit code
    of a run."""

    exit_code: int = ExitCode.INTERNAL

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(CpmbeeError):
    exit_code = ExitCode.USAGE


class InvalidError(CpmbeeError):
    exit_code = ExitCode.INVALID


class SpecError(InvalidError):
    """The job spec is invalid; the message names the dotted key."""


class RejectedError(SpecError):
    """The Kubernetes API rejects an object. `causes`: (path in the object, what is wrong with it)."""

    def __init__(self, message: str, causes: Sequence[tuple[str, str]] = (), *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.causes = tuple(causes)


class DataError(InvalidError):
    """A record, a data file or a data set is invalid; the message names file and line."""


class ModelError(InvalidError):
    """A model folder, its configuration, its weights or its output is invalid."""


class PreflightError(CpmbeeError):
    exit_code = ExitCode.PREFLIGHT


class StoreError(PreflightError):
    """The object store failed; the message quotes its response."""


class AccessError(StoreError):
    """The store denies access: missing or wrong credentials, a missing permission or bucket, an untrusted TLS root."""


class DamagedError(StoreError):
    """A stored object is corrupt. Retrying does not help; an older object may."""


class DiskError(StoreError):
    """The local file system failed, for example full or read-only. Retrying does not help."""


class ClusterError(PreflightError):
    """The Kubernetes API denied a request (credentials, permissions, quota); the message quotes its response."""


class UnreachableError(ClusterError):
    """The Kubernetes API did not answer, or with a server error. The state of the job is unknown; a retry may help."""


class RefusedError(CpmbeeError):
    exit_code = ExitCode.REFUSED


class ConflictError(RefusedError):
    """A conditional put failed: the object exists already, or changed since it was read."""


class JobFailedError(CpmbeeError):
    exit_code = ExitCode.JOB_FAILED


class UnfinishedError(CpmbeeError):
    exit_code = ExitCode.UNFINISHED


class NotFoundError(CpmbeeError):
    exit_code = ExitCode.NOT_FOUND


class CancelledError(CpmbeeError):
    exit_code = ExitCode.CANCELLED
