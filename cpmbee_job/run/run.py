"""A run in the object store: its spec, its data, its result. The launcher and the pods share it."""

import platform
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field

import cpmbee_job
from cpmbee_job import documents
from cpmbee_job.errors import ConflictError, CpmbeeError, ExitCode, NotFoundError, UsageError
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import first_start
from cpmbee_job.run.identity import flatten, require_same, spec_digest, training_fields
from cpmbee_job.spec import JobSpec, StorageSpec, parse_spec
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store

State = Literal["succeeded", "failed", "cancelled"]

EXIT_CODES = {"succeeded": ExitCode.SUCCESS, "failed": ExitCode.JOB_FAILED, "cancelled": ExitCode.CANCELLED}


class ResultRecord(documents.Document):
    state: str
    ended_at: str
    exit_code: documents.Number | None = None


class PreparedSet(documents.Document):
    prepared: str
    rows: documents.Number
    weight: float | None


class PreparedSplit(documents.Document):
    rows: documents.Number
    sets: Annotated[tuple[PreparedSet, ...], Field(min_length=1)]


class DataRecord(documents.Document):
    """The fields that others than its writer and training read."""

    vocabulary: dict[str, documents.Number]
    train: PreparedSplit
    eval: PreparedSplit | None


def new_run_id() -> str:
    """Return an id that sorts by time and is practically unique: `20260131-235959-a1b2`."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(2)


def check_run_id(run_id: str) -> str:
    """Return the id. Raises `UsageError` if it is not a valid folder name in every store."""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", run_id):
        raise UsageError(
            f"run id {run_id!r}: must consist of at most 63 letters and digits, with '-', '_' and '.' inside"
        )
    return run_id


@dataclass(frozen=True)
class Run:
    """A run's folder in the store, and its spec."""

    url: str
    store: Store
    spec: JobSpec
    storage: StorageSpec
    """How this process reaches the object store; the pods and the launcher may use different addresses."""

    @classmethod
    def open(cls, url: str, storage: StorageSpec | None = None) -> Self:
        """Open the run at `url`. Raises `NotFoundError`."""
        storage = storage or StorageSpec()
        store = open_store(url, storage)
        try:
            text = store.get(keys.SPEC)
        except NotFoundError as error:
            raise NotFoundError(f"{url}: no run there ({keys.SPEC} does not exist)") from error
        return cls(store.url, store, parse_spec(text, source=f"{store.url}/{keys.SPEC}"), storage)

    @classmethod
    def start(cls, spec: JobSpec, run_id: str, storage: StorageSpec | None = None) -> Self:
        """Open the run `run_id` of this spec, or begin it if it does not exist. Raises `RefusedError` with the
        differing fields if the run has another spec."""
        try:
            return cls.begin(spec, run_id, storage)
        except ConflictError:
            run = cls.open(keys.run_url(spec.output, spec.name, run_id), storage or spec.storage)
            if run.store.info(keys.attempt_key(1)) is None:  # nothing is trained yet: the user may correct the spec
                run.store.delete(keys.DATA)
            else:
                run.require_compatible(spec)
            if run.spec != spec:
                run.store.put(keys.SPEC, spec.to_yaml().encode())
            return replace(run, spec=spec)

    @classmethod
    def begin(cls, spec: JobSpec, run_id: str, storage: StorageSpec | None = None) -> Self:
        """Begin the run. Raises `ConflictError` if it exists."""
        storage = storage or spec.storage
        store = open_store(keys.run_url(spec.output, spec.name, run_id), storage)
        store.put(keys.SPEC, spec.to_yaml().encode(), if_none_match=True)
        return cls(store.url, store, spec, storage)

    def change_spec(self, spec: JobSpec) -> Self:
        """Replace the run's spec. Raises `RefusedError` with the differences if the new one would compute something
        else, `ConflictError` if another process changed it meanwhile."""
        self.require_compatible(spec)
        if spec != self.spec:
            stored, etag = self.store.get_with_etag(keys.SPEC)
            if parse_spec(stored, source=self.url) != self.spec:
                raise ConflictError(f"{self.url}/{keys.SPEC}: changed by another process", hint="try again")
            self.store.put(keys.SPEC, spec.to_yaml().encode(), if_match=etag)
        return replace(self, spec=spec)

    def require_compatible(self, spec: JobSpec) -> None:
        """Raise `RefusedError` with the differences if `spec` would compute something else than the run's."""
        require_same(self.url, "the spec", training_fields(spec), training_fields(self.spec))

    def bind_data(self, record: dict[str, Any]) -> None:
        """Bind the run to its prepared data. Raises `RefusedError` if it is bound to other data."""
        try:
            self.store.put(keys.DATA, documents.to_json(record), if_none_match=True)
        except ConflictError:
            require_same(self.url, "the data", flatten(record), flatten(self.data()))

    def data(self) -> dict[str, Any]:
        """Return the document of `bind_data`. Raises `NotFoundError` if the data is not prepared yet."""
        return self._read(keys.DATA, DataRecord)

    def result(self) -> dict[str, Any] | None:
        """Return the run's result, None while it has not ended."""
        with suppress(NotFoundError):
            return self._read(keys.RESULT, ResultRecord)
        return None

    def finish(self, state: State, reason: str, **fields: Any) -> dict[str, Any]:
        """Write and return `result.json`; an existing one is kept and returned instead."""
        record = _result(self.url, state, reason) | {"digests": {"spec": spec_digest(self.spec)}} | fields
        with suppress(ConflictError):
            self.store.put(keys.RESULT, documents.to_json(record), if_none_match=True)
            return record
        return self._read(keys.RESULT, ResultRecord)

    def fail(self, error: CpmbeeError, **fields: Any) -> dict[str, Any]:
        """Record that the run failed because of `error`."""
        return self.finish("failed", str(error), exit_code=error.exit_code, **fields)

    def reopen(self) -> None:
        """Let a failed or cancelled run resume: move its result to `attempts/`."""
        result = self.result()
        if result is not None:
            self.store.put(f"attempts/{result['ended_at'].replace(':', '')}.result.json", documents.to_json(result))
            self.store.delete(keys.RESULT)

    def deadline(self) -> float | None:
        """Return when the run must have ended (seconds since 1970); None without a deadline, and before the first
        attempt."""
        limit = self.spec.train.deadline
        with suppress(NotFoundError):
            return None if limit is None else first_start(self.store) + limit
        return None

    @property
    def deadline_reason(self) -> str:
        return f"the deadline of {self.spec.train.deadline:.0f} s has passed"

    def _read(self, key: str, form: type[documents.Document]) -> dict[str, Any]:
        """Return a whole document, unknown keys included. Raises `DamagedError` if it does not have this form."""
        data = self.store.get(key)
        form.parse(data, f"{self.url}/{key}")
        return documents.from_json(data)


def may_resume(state: str) -> bool:
    """Return whether a run whose result has this state may continue: it failed or was cancelled."""
    return state != "succeeded"


def fail_unread(store: Store, error: CpmbeeError) -> None:
    """Record that the run in `store` failed because of `error`, without reading its spec, which may be unreadable."""
    record = _result(store.url, "failed", str(error)) | {"exit_code": error.exit_code}
    with suppress(ConflictError):  # it has ended already
        store.put(keys.RESULT, documents.to_json(record), if_none_match=True)


def exit_code(result: Mapping[str, Any]) -> int:
    """Return the exit code of a result: that of the error that failed the run, else that of its state."""
    return int(result.get("exit_code") or EXIT_CODES.get(str(result.get("state")), ExitCode.JOB_FAILED))


def _result(url: str, state: State, reason: str) -> dict[str, Any]:
    return {
        "state": state,
        "reason": reason,
        "run": url,
        "ended_at": documents.now(),
        "versions": {"cpmbee-job": cpmbee_job.__version__, "python": platform.python_version()},
    }
