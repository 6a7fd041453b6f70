"""Any bytes in place of a document of the store: its readers report it as corrupt or continue without it."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import device, ones

from cpmbee_job import documents
from cpmbee_job.data.dataset.index import INDEX, Index
from cpmbee_job.errors import CpmbeeError, DamagedError
from cpmbee_job.launch.follow.wait import missing_delta
from cpmbee_job.launch.lifecycle.garbage import InferenceRequest, find_garbage
from cpmbee_job.launch.local_inputs import find_delta
from cpmbee_job.launch.runs.listing import list_runs
from cpmbee_job.launch.runs.observe import read_heartbeat
from cpmbee_job.launch.runs.verify import list_checkpoints, verify_run
from cpmbee_job.model.locate import fetch_delta
from cpmbee_job.run import keys
from cpmbee_job.run.attempts import move_pointer
from cpmbee_job.run.rows import RowRecorder, read_rows
from cpmbee_job.run.run import Run, exit_code
from cpmbee_job.spec import StorageSpec, parse_spec
from cpmbee_job.store.s3.upload import BegunUpload
from cpmbee_job.train.attempt import Attempt
from cpmbee_job.train.engine.interface import EngineState
from cpmbee_job.train.failures import Failure, record_failure
from cpmbee_job.train.output.checkpoint import newest_checkpoint, write_checkpoint
from cpmbee_job.train.output.journal import Journal
from cpmbee_job.train.world import World
from tests.fuzz.fuzzing import corpus, damaged, damaged_json, examples
from tests.records import data_record

FAILURE = Failure("reason", 3, False, 100)
DELTA = keys.delta_prefix(2, 1)
PART = {"key": "part-00000.arrow", "sha256": "0", "size": 1, "rows": 2, "examples": 3, "tokens": 4, "target_tokens": 5}
INDEX_RECORD: dict[str, Any] = json.loads(
    Index.from_json(
        documents.to_json(
            {"version": 1, "digest": "d", "kind": "rows", "settings": {"max_length": 8}, "vocab": "v", "source": "s",
             "listing": "l", "parts": [PART]}
        ),
        "index",
    ).to_json()
)  # fmt: skip


def begin(folder: Path) -> Run:
    """Create a run with one valid document of each kind."""
    text = f"name: a\nmodel: m/\ndata: {{train: t.jsonl}}\noutput: {folder}\ntrain: {{max_failures: 2, deadline: 9}}\n"
    run = Run.begin(parse_spec(text, source="job.yaml"), "r1")
    run.bind_data(data_record(rows=2))
    recorder = RowRecorder(lambda own: [own], None)
    for step in (1, 2):
        recorder.note(step, step - 1, [0])
    recorder.gather()
    recorder.write(run.store, 2, 1)
    write_checkpoint(
        run.store, 2, 1, EngineState({"parameter/a": ones(3)}, {"loss_scale": {"value": 2.0}}), {"step": 2}
    )
    run.store.put(f"{DELTA}x.pt", b"")
    file = {"size": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
    run.store.put(f"{DELTA}manifest.json", documents.to_json({"r": 8, "alpha": 16, "files": {"x.pt": file}}))
    for pointer in (keys.BEST, keys.LAST):
        move_pointer(run.store, pointer, {"step": 2, "prefix": DELTA}, attempt=1)
    run.store.put(keys.attempt_key(1), documents.to_json({"attempt": 1, "started_unix": 1.5}))
    run.store.put(keys.attempt_key(2, ".begin"), documents.to_json({"attempt": 1, "step": 2}))
    run.store.put(keys.attempt_key(1, ".failure"), documents.to_json(vars(FAILURE)))
    step = {"event": "step", "step": 1, "loss": 1.5, "lr": 0.1, "grad_norm": 1}
    run.store.put(keys.METRICS, json.dumps(step).encode() + b"\n" + b'{"event": "eval", "step": 2, "loss": 1}\n')
    run.store.put(keys.STATUS, documents.to_json({"state": "running", "step": 1, "loss": 0.5}))
    run.finish("failed", "reason", exit_code=3)
    return run


def journal(run: Run) -> None:
    attempt = Attempt(run, World(0, 0, 1, device("cpu")), 1)
    Journal(attempt, start_step=9, total_steps=9, flush_interval=99.0).abandon()


def record_again(run: Run) -> None:
    run.store.delete(keys.attempt_key(2, ".failure"))
    record_failure(run, 2, FAILURE)


READERS: dict[str, list[Callable[[Run], object]]] = {
    keys.SPEC: [lambda run: Run.open(run.url)],
    keys.DATA: [lambda run: run.data(), verify_run],
    keys.RESULT: [lambda run: exit_code(run.result() or {})],
    keys.STATUS: [read_heartbeat],
    keys.METRICS: [journal],
    keys.LATEST: [lambda run: move_pointer(run.store, keys.LATEST, {"step": 2}, 2**62)],
    keys.BEST: [
        lambda run: fetch_delta(run.url),
        missing_delta,
        lambda run: find_delta(Path(run.url)),
        lambda run: move_pointer(run.store, keys.BEST, {"step": 2, "prefix": DELTA}, 2**62),
    ],
    keys.manifest_key(2, 1): [
        lambda run: list_checkpoints(run.store),
        lambda run: newest_checkpoint(run.store, lambda _: None),
    ],
    keys.state_key(2, 1): [lambda run: newest_checkpoint(run.store, lambda _: None)],
    keys.rows_key(2, 1): [lambda run: read_rows(run.store, 2, 1), verify_run],
    f"{DELTA}manifest.json": [verify_run],
    keys.attempt_key(1): [lambda run: run.deadline()],
    keys.attempt_key(2, ".begin"): [
        lambda run: list_checkpoints(run.store),
        lambda run: newest_checkpoint(run.store, lambda _: None),
    ],
    keys.attempt_key(1, ".failure"): [record_again],
}
ALL: list[Callable[[Run], object]] = [
    lambda run: list_runs(None, output=run.spec.output),
    lambda run: find_garbage(run.spec.output, StorageSpec(), 2e9),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return begin(tmp_path_factory.mktemp("records"))


def read(run: Run, key: str, data: bytes) -> None:
    before = run.store.get(key)
    run.store.put(key, data)
    try:
        for reader in READERS[key] + ALL:
            try:
                reader(run)
            except CpmbeeError as error:
                assert error.message  # noqa: PT017
    finally:
        run.store.put(key, before)


@pytest.mark.parametrize("key", READERS)
def test_intact_documents_are_read(tmp_path: Path, key: str) -> None:
    run = begin(tmp_path)
    for reader in READERS[key] + ALL:
        if reader is not READERS[keys.BEST][0]:  # no weights lie there
            reader(run)
    assert verify_run(run).problems == []
    assert newest_checkpoint(run.store, pytest.fail) is not None


@pytest.mark.parametrize("data", corpus("records"))
@pytest.mark.parametrize("key", READERS)
def test_known_bytes(run: Run, key: str, data: bytes) -> None:
    read(run, key, data)


@pytest.mark.parametrize("key", READERS)
@examples
@given(draw=st.data())
def test_damaged_records(run: Run, key: str, draw: st.DataObject) -> None:
    data = run.store.get(key)
    strategy = damaged([data], [b"-1", b"1e999", b"9" * 5000, b"[" * 3000, b"NaN"])
    if key.endswith((".json", "T")):
        strategy |= damaged_json([json.loads(data)])
    if key.endswith(".jsonl"):
        lines = damaged_json([json.loads(line) for line in data.splitlines()])
        strategy |= st.lists(lines, max_size=4).map(b"\n".join)
    read(run, key, draw.draw(strategy))


@pytest.mark.parametrize("data", corpus("records"))
def test_known_bytes_in_small_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    small(tmp_path, monkeypatch, data)


@examples
@given(
    damaged_json(
        [
            INDEX_RECORD,
            vars(FAILURE),
            {"id": "x", "writer": "w", "sha256": None, "checks_crc": True},
            {"command": "predict", "model": "m/", "delta": None, "data": "d"},
        ]
    )
)
def test_damaged_small_documents(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        small(tmp_path_factory.getbasetemp(), monkeypatch, data)


def small(folder: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Read the documents of a prepared dataset, a local upload, a container and an inference."""
    try:
        InferenceRequest.parse(data, keys.REQUEST)
    except CpmbeeError as error:
        assert error.message.startswith(keys.REQUEST)  # noqa: PT017
    try:
        index = Index.from_json(data, INDEX)
    except CpmbeeError as error:
        assert error.message.startswith(INDEX)  # noqa: PT017
    else:
        assert index.to_json()
    with suppress(DamagedError):
        BegunUpload.parse(data, "")
    (folder / "failure").write_bytes(data)
    assert isinstance(Failure.read(folder / "failure"), Failure | None)
    try:
        StorageSpec.known_from_json(data.decode(errors="replace"))
    except ValueError as error:
        assert str(error)  # noqa: PT017


def test_a_checkpoint_whose_rows_name_themselves_does_not_loop_forever(tmp_path: Path) -> None:
    run = begin(tmp_path)
    header = {"step": 2, "attempt": 1, "after": {"step": 2, "attempt": 1}}
    run.store.put(keys.rows_key(2, 1), json.dumps(header).encode())
    assert verify_run(run).rows is None
