"""One run in the object store: its spec, the data it is bound to, its end. Launcher and pods share it."""

import json
import platform
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import cpmbee_job
from cpmbee_job import documents
from cpmbee_job.errors import ConflictError, CpmbeeError, ExitCode, NotFoundError, RefusedError, UsageError
from cpmbee_job.run import keys, records
from cpmbee_job.run.identity import flatten, training_fields
from cpmbee_job.spec import JobSpec, StorageSpec, parse_spec
from cpmbee_job.store.base import Store
from cpmbee_job.store.urls import open_store

State = Literal["succeeded", "failed", "cancelled"]

EXIT_CODES: dict[str, int] = {
    "succeeded": ExitCode.SUCCESS,
    "failed": ExitCode.JOB_FAILED,
    "cancelled": ExitCode.CANCELLED,
}


def new_run_id() -> str:
    """Sortable by time and unlikely to be drawn twice: `20260131-235959-a1b2`."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(2)


def check_run_id(run_id: str) -> str:
    """The id, if it can be the name of a folder in any store. Raises `UsageError`."""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", run_id):
        raise UsageError(f"run id {run_id!r}: letters, digits, '-', '_' and '.' inside, 63 characters at most")
    return run_id


@dataclass(frozen=True)
class Run:
    """A run's folder in the store, and the spec that lies in it."""

    url: str
    store: Store
    spec: JobSpec
    storage: StorageSpec
    """How this process reaches the object store; pods and the launcher may see it under different addresses."""

    @classmethod
    def open(cls, url: str, storage: StorageSpec | None = None) -> Self:
        """The run at `url`. Raises `NotFoundError` where there is none."""
        storage = storage or StorageSpec()
        store = open_store(url, storage)
        try:
            text = store.get(keys.SPEC)
        except NotFoundError as error:
            raise NotFoundError(f"{url}: no run there (it has no {keys.SPEC})") from error
        return cls(store.url, store, parse_spec(text, source=f"{store.url}/{keys.SPEC}"), storage)

    @classmethod
    def start(cls, spec: JobSpec, run_id: str, storage: StorageSpec | None = None) -> Self:
        """Open the run `run_id` of this spec, or begin it where there is none.

        Raises `RefusedError` that names the differing fields where a run with that id has another spec.
        """
        try:
            return cls.begin(spec, run_id, storage)
        except ConflictError:
            run = cls.open(keys.run_url(spec.output, spec.name, run_id), storage or spec.storage)
            if run.store.info(keys.attempt_key(1)) is None:  # nothing is trained: a typing mistake can be mended
                run.store.delete(keys.DATA)
            else:
                run.require_same(training_fields(spec), training_fields(run.spec), "the spec")
            if run.spec != spec:
                run.store.put(keys.SPEC, spec.to_yaml().encode())
            return replace(run, spec=spec)

    @classmethod
    def begin(cls, spec: JobSpec, run_id: str, storage: StorageSpec | None = None) -> Self:
        """Begin the run. Raises `ConflictError` where somebody has."""
        storage = storage or spec.storage
        store = open_store(keys.run_url(spec.output, spec.name, run_id), storage)
        store.put(keys.SPEC, spec.to_yaml().encode(), if_none_match=True)
        return cls(store.url, store, spec, storage)

    def change_spec(self, spec: JobSpec) -> Self:
        """The run with another spec, from now on. Raises `RefusedError` with the differences where it would compute
        something else, `ConflictError` where somebody else has changed it meanwhile."""
        self.require_same(training_fields(spec), training_fields(self.spec), "the spec")
        if spec != self.spec:
            stored, etag = self.store.get_with_etag(keys.SPEC)
            if parse_spec(stored, source=self.url) != self.spec:
                raise ConflictError(f"{self.url}/{keys.SPEC}: somebody else is changing it", hint="try again")
            self.store.put(keys.SPEC, spec.to_yaml().encode(), if_match=etag)
        return replace(self, spec=spec)

    def require_same(self, now: Mapping[str, Any], then: Mapping[str, Any], what: str) -> None:
        """Raise `RefusedError` with the differences between what is asked for now and what the run began with."""
        changed = [key for key in {**then, **now} if now.get(key) != then.get(key)]
        if changed:
            lines = "".join(f"\n  {key}: {_show(then.get(key))} -> {_show(now.get(key))}" for key in changed)
            raise RefusedError(
                f"{self.url}: {what} is not what this run began with:{lines}",
                hint="go on with the old one, or start another run (`submit`; `local` with another --run-id)",
            )

    def bind_data(self, record: dict[str, Any]) -> None:
        """Bind the run to its prepared data; a later attempt must find the same."""
        try:
            self.store.put(keys.DATA, documents.to_json(record), if_none_match=True)
        except ConflictError:
            self.require_same(flatten(record), flatten(self.data()), "the data")

    def data(self) -> dict[str, Any]:
        """The record of `bind_data`. Raises `NotFoundError` where the data has not been prepared."""
        return self._read(keys.DATA, records.DataRecord)

    def result(self) -> dict[str, Any] | None:
        """The run's final record, or None while it has not ended."""
        try:
            return self._read(keys.RESULT, records.ResultRecord)
        except NotFoundError:
            return None

    def finish(self, state: State, reason: str, **fields: Any) -> dict[str, Any]:
        """Write `result.json`, once: where one exists already, that one stays and is returned."""
        record = _result(self.url, state, reason) | {"digests": {"spec": documents.digest(training_fields(self.spec))}}
        record |= fields
        try:
            self.store.put(keys.RESULT, documents.to_json(record), if_none_match=True)
        except ConflictError:
            return self._read(keys.RESULT, records.ResultRecord)
        return record

    def fail(self, error: CpmbeeError, **fields: Any) -> dict[str, Any]:
        """End the run for good because of `error`."""
        return self.finish("failed", str(error), exit_code=error.exit_code, **fields)

    def reopen(self) -> None:
        """Let a failed or cancelled run go on: its result moves aside, nothing is lost."""
        result = self.result()
        if result is not None:
            self.store.put(f"attempts/{result['ended_at'].replace(':', '')}.result.json", documents.to_json(result))
            self.store.delete(keys.RESULT)

    def _read(self, key: str, form: type[documents.Document]) -> dict[str, Any]:
        """All of a record. Raises `DamagedError` where it has not this form."""
        data = self.store.get(key)
        form.parse(data, f"{self.url}/{key}")
        return documents.from_json(data)


def fail_unread(store: Store, error: CpmbeeError) -> None:
    """End the run in `store` for good because of `error`, whatever its spec is: this version may not understand it."""
    record = _result(store.url, "failed", str(error)) | {"exit_code": error.exit_code}
    with suppress(ConflictError):  # it has ended already
        store.put(keys.RESULT, documents.to_json(record), if_none_match=True)


def exit_code(result: Mapping[str, Any]) -> int:
    """The exit code that a result stands for: 0 succeeded, the failing error's own, 103 cancelled."""
    return int(result.get("exit_code") or EXIT_CODES.get(str(result.get("state")), ExitCode.JOB_FAILED))


def now() -> str:
    """The time in UTC, as every record has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _result(url: str, state: State, reason: str) -> dict[str, Any]:
    return {
        "state": state,
        "reason": reason,
        "run": url,
        "ended_at": now(),
        "versions": {"cpmbee-job": cpmbee_job.__version__, "python": platform.python_version()},
    }


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
