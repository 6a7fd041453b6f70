"""What is garbage for `gc`, and what it keeps."""

import json
import os
import time
from pathlib import Path

import pytest

from cpmbee_job import documents
from cpmbee_job.launch.lifecycle.garbage import Garbage, collect, find_garbage
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run
from cpmbee_job.spec import StorageSpec, parse_spec
from cpmbee_job.store.base import Store
from cpmbee_job.store.files import TEMPORARY
from cpmbee_job.store.urls import open_store
from tests.records import data_record

DAY = 86400.0
SETTINGS = StorageSpec()


def begin(output: Path, run_id: str, prepared: str | None = "used", **fields: str) -> Run:
    inputs = {"model": "m/", "train": "t.jsonl"} | fields
    text = "name: a\nmodel: {model}\ndata: {{train: {train}}}\noutput: {output}\ntrain: {{keep_checkpoints: 2}}\n"
    run = Run.begin(parse_spec(text.format(output=output, **inputs), source="job.yaml"), run_id)
    if prepared is not None:
        run.bind_data(data_record(prepared=prepared))
    return run


def checkpoint(run: Run, step: int, attempt: int = 1, *, half: str | None = None) -> None:
    if half != "manifest":
        run.store.put(keys.state_key(step, attempt), b"state")
    if half != "state":
        run.store.put(keys.manifest_key(step, attempt), b"{}")


def delta(run: Run, step: int, attempt: int = 1, *, whole: bool = True) -> None:
    run.store.put(f"{keys.delta_prefix(step, attempt)}delta.safetensors", b"weights")
    if whole:
        run.store.put(f"{keys.delta_prefix(step, attempt)}manifest.json", b"{}")


def age(output: Path, days: float = 3) -> None:
    """Set the time of modification of all files to some days ago."""
    for path in output.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - days * DAY,) * 2)


def found(output: Path) -> dict[str, str]:
    """The garbage by its path in the output, with the reason."""
    garbage = find_garbage(str(output), SETTINGS, time.time() - DAY).garbage
    return {one.url.removeprefix(f"{output}/"): one.why for one in garbage}


def test_superseded_and_incomplete_checkpoints_are_garbage(tmp_path: Path) -> None:
    run = begin(tmp_path, "r1")
    for step in (2, 4, 6, 8):
        checkpoint(run, step)
    checkpoint(run, 10, half="state")
    checkpoint(run, 12, half="manifest")
    checkpoint(run, 6, attempt=2)  # of a newer attempt, which makes it newer than step 8
    age(tmp_path)
    assert found(tmp_path) == {
        "a/r1/checkpoints/2/ (attempt 1)": "not among the newest 2",
        "a/r1/checkpoints/4/ (attempt 1)": "not among the newest 2",
        "a/r1/checkpoints/10/ (attempt 1)": "incomplete checkpoint",
        "a/r1/checkpoints/12/ (attempt 1)": "incomplete checkpoint",
    }


def test_the_checkpoint_that_latest_names_is_kept(tmp_path: Path) -> None:
    run = begin(tmp_path, "r1")
    for step in (2, 4, 6):
        checkpoint(run, step)
    run.store.put(keys.LATEST, documents.to_json({"step": 2, "attempt": 1}))
    age(tmp_path)
    assert found(tmp_path) == {}


def test_superseded_and_incomplete_deltas_are_garbage(tmp_path: Path) -> None:
    run = begin(tmp_path, "r1")
    for step in (2, 4, 6, 8, 10):
        delta(run, step, whole=step != 10)
    run.store.put(keys.BEST, documents.to_json({"prefix": "delta/2.1/"}))
    age(tmp_path)
    assert found(tmp_path) == {
        "a/r1/delta/4.1/": "neither the best nor among the newest",
        "a/r1/delta/10.1/": "incomplete delta",
    }


def test_a_delta_from_which_another_run_starts_is_kept(tmp_path: Path) -> None:
    run = begin(tmp_path, "r1")
    for step in (2, 4, 6, 8):
        delta(run, step)
    spec = run.spec.with_fields({"lora.init_from": f"{run.url}/delta/4.1"})
    Run.begin(spec, "r2").bind_data(data_record(prepared="used"))
    age(tmp_path)
    assert set(found(tmp_path)) == {"a/r1/delta/2.1/"}


def test_deltas_are_kept_if_a_pointer_is_corrupt(tmp_path: Path) -> None:
    run = begin(tmp_path, "r1")
    for step in (2, 4, 6):
        delta(run, step)
    run.store.put(keys.BEST, b"{")
    age(tmp_path)
    assert found(tmp_path) == {}
    assert any("deltas are kept" in note for note in find_garbage(str(tmp_path), SETTINGS, time.time()).notes)


def share(output: Path, *digests: str) -> None:
    store = open_store(str(output))
    for digest in digests:
        store.put(f"prepared/{digest}/part-00000.arrow", b"rows")
        store.put(f"prepared/{digest}/index.json", b"{}")


def test_prepared_data_are_kept_while_a_run_can_resume_with_them(tmp_path: Path) -> None:
    share(tmp_path, "used", "failed", "done", "orphan")
    begin(tmp_path, "r1")
    begin(tmp_path, "r2", "failed").finish("failed", "why not")
    begin(tmp_path, "r3", "done").finish("succeeded", "finished")
    age(tmp_path)
    assert set(found(tmp_path)) == {"prepared/done/", "prepared/orphan/"}


def test_uploads_that_no_spec_names_are_garbage(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for digest in ("named", "nobody"):
        store.put(f"uploads/{digest}/train.jsonl", b"{}")
    begin(tmp_path, "r1", train=f"{tmp_path}/uploads/named/train.jsonl").finish("succeeded", "finished")
    age(tmp_path)
    assert set(found(tmp_path)) == {"uploads/nobody/"}


def ask(output: Path, digest: str, *results: str, **inputs: str | None) -> Store:
    """The folder of an inference with these results."""
    store = open_store(f"{output}/inference/{digest}")
    asked = {"command": "evaluate", "model": "s3://m/", "delta": None, "data": "s3://d", **inputs}
    store.put(keys.REQUEST, documents.to_json(asked))
    for name in results:
        store.put(name, b"{}")
    return store


def test_inferences_without_a_result_are_garbage(tmp_path: Path) -> None:
    ask(tmp_path, "scored", keys.PER_EXAMPLE, keys.SCORES)
    ask(tmp_path, "answered", keys.ROWS, command="predict")
    ask(tmp_path, "failed")
    ask(tmp_path, "killed", keys.PER_EXAMPLE)
    open_store(f"{tmp_path}/inference/cut").put(keys.PER_EXAMPLE, b"{}")  # by a gc that was killed
    age(tmp_path)
    assert set(found(tmp_path)) == {"inference/failed/", "inference/killed/", "inference/cut/"}
    ask(tmp_path, "failed")  # again
    assert set(found(tmp_path)) == {"inference/killed/", "inference/cut/"}


def test_a_recent_unfinished_inference_protects_its_inputs(tmp_path: Path) -> None:
    run = begin(tmp_path, "r1")
    for step in (2, 4, 6, 8):
        delta(run, step)
    for name in ("model", "rows", "nobody"):
        open_store(str(tmp_path)).put(f"uploads/{name}/file", b"{}")
    age(tmp_path)
    inputs = {"model": f"{tmp_path}/uploads/model", "data": f"{tmp_path}/uploads/rows/file"}
    asked = ask(tmp_path, "waits", **inputs, delta=f"{run.url}/delta/4.1")
    assert set(found(tmp_path)) == {"a/r1/delta/2.1/", "uploads/nobody/"}
    freed = {"a/r1/delta/2.1/", "a/r1/delta/4.1/", "uploads/nobody/", "uploads/model/", "uploads/rows/"}
    age(tmp_path)
    assert set(found(tmp_path)) == freed | {"inference/waits/"}
    asked.put(keys.SCORES, b"{}")
    assert set(found(tmp_path)) == freed


@pytest.mark.parametrize(
    "request_", [b"{", b'{"command": "of a newer release", "model": "m/", "delta": null, "data": "d"}']
)
def test_an_unreadable_inference_is_kept_with_everything_it_may_need(tmp_path: Path, request_: bytes) -> None:
    share(tmp_path, "orphan")
    run = begin(tmp_path, "r1")
    for step in (2, 4, 6):
        delta(run, step)
    ask(tmp_path, "x").put(keys.REQUEST, request_)
    age(tmp_path)
    findings = find_garbage(str(tmp_path), SETTINGS, time.time() - DAY)
    assert findings.garbage == ()
    assert any("inference/x cannot be read" in note for note in findings.notes)


def test_an_inference_that_continued_meanwhile_is_not_deleted(tmp_path: Path) -> None:
    for digest in ("1", "2", "3", "4"):
        ask(tmp_path, digest)
    age(tmp_path)
    findings = find_garbage(str(tmp_path), SETTINGS, time.time() - DAY)
    assert len(findings.garbage) == 4

    def somebody_comes(one: Garbage) -> None:
        if one.url.endswith("1/"):
            ask(tmp_path, "2")
            ask(tmp_path, "3", keys.SCORES)

    collect(findings, SETTINGS, somebody_comes)
    assert {path.name for path in (tmp_path / "inference").iterdir()} == {"2", "3"}


@pytest.mark.parametrize("state", ["not bound yet", "unreadable"])
def test_shared_folders_are_kept_while_the_needs_of_a_run_are_unknown(tmp_path: Path, state: str) -> None:
    share(tmp_path, "orphan")
    run = begin(tmp_path, "r1", prepared=None)
    if state == "unreadable":
        run.store.put(keys.SPEC, b"name: [")
    age(tmp_path)
    findings = find_garbage(str(tmp_path), SETTINGS, time.time() - DAY)
    assert findings.garbage == ()
    assert any("a/r1" in note and "keeping" in note for note in findings.notes)


def test_recent_objects_are_kept(tmp_path: Path) -> None:
    run = begin(tmp_path, "r1")
    for step in (2, 4, 6):
        checkpoint(run, step)
    delta(run, 6, whole=False)
    share(tmp_path, "orphan")
    (tmp_path / f".object.123{TEMPORARY}").touch()
    age(tmp_path, days=0.5)
    assert found(tmp_path) == {}
    age(tmp_path)
    os.utime(tmp_path / "prepared" / "orphan" / "part-00000.arrow")  # somebody prepares on
    assert "prepared/orphan/" not in found(tmp_path)


def test_temporary_files_of_killed_writers_are_garbage(tmp_path: Path) -> None:
    begin(tmp_path, "r1")
    hidden = tmp_path / "a" / "r1" / f".state.123{TEMPORARY}"
    hidden.write_bytes(b"half")
    age(tmp_path)
    findings = find_garbage(str(tmp_path), SETTINGS, time.time() - DAY)
    assert [(one.kind, one.num_bytes) for one in findings.garbage] == [("cut upload", 4)]
    collect(findings, SETTINGS, lambda _: None)
    assert not hidden.exists()


def test_a_folder_that_a_run_needs_meanwhile_is_not_deleted(tmp_path: Path) -> None:
    share(tmp_path, "first", "second", "third")
    age(tmp_path)
    findings = find_garbage(str(tmp_path), SETTINGS, time.time() - DAY)
    assert len(findings.garbage) == 3

    def somebody_comes(one: Garbage) -> None:
        if one.url.endswith("first/"):
            begin(tmp_path, "new", "second")

    gone = collect(findings, SETTINGS, somebody_comes)
    assert [one.url.rpartition("prepared/")[2] for one in gone] == ["first/", "third/"]
    assert {path.name for path in (tmp_path / "prepared").iterdir()} == {"second"}


def test_manifests_are_deleted_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path, "r1")
    for step in (2, 4, 6):
        checkpoint(run, step)
    age(tmp_path)
    findings = find_garbage(str(tmp_path), SETTINGS, time.time() - DAY)
    deleted: list[str] = []
    monkeypatch.setattr(type(run.store), "delete", lambda _, key: deleted.append(key))
    collect(findings, SETTINGS, lambda _: None)
    assert deleted == [keys.manifest_key(2, 1), keys.state_key(2, 1)]


def test_a_run_is_intact_after_the_collection(tmp_path: Path) -> None:
    run = begin(tmp_path, "r1")
    for step in (2, 4, 6):
        checkpoint(run, step)
        delta(run, step)
    for key in (keys.BEST, keys.LAST):
        run.store.put(key, documents.to_json({"prefix": "delta/6.1/"}))
    age(tmp_path)
    collect(find_garbage(str(tmp_path), SETTINGS, time.time() - DAY), SETTINGS, lambda _: None)
    assert found(tmp_path) == {}
    assert {path.name for path in (tmp_path / "a/r1/checkpoints").iterdir()} == {"4", "6"}
    assert json.loads(run.store.get(keys.BEST))["prefix"] == "delta/6.1/"
