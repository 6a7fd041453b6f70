"""A run in the store: begun once, resumed only with the same training fields, finished once."""

import re
from pathlib import Path

import pytest

from cpmbee_job.errors import ConflictError, DataError, NotFoundError, RefusedError, UsageError
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run, check_run_id, exit_code, new_run_id
from cpmbee_job.spec import JobSpec, TrainSpec, parse_spec
from tests.paths import DOCS
from tests.records import data_record


def job(output: Path, *overrides: str) -> JobSpec:
    text = f"name: a\nmodel: m/\ndata: {{train: t.jsonl}}\noutput: {output}\n"
    return parse_spec(text, source="job.yaml", overrides=overrides)


def test_open_returns_the_spec(tmp_path: Path) -> None:
    spec = job(tmp_path)
    run = Run.start(spec, "r1")
    assert Run.open(run.url).spec == spec


def test_open_of_a_missing_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no run there"):
        Run.open(str(tmp_path / "nothing"))


def begin(run: Run) -> None:
    """As the first attempt does."""
    run.store.put(keys.attempt_key(1), b"{}")


def test_spec_can_be_corrected_before_the_first_attempt(tmp_path: Path) -> None:
    Run.start(job(tmp_path), "r1").bind_data(data_record(listing="x"))
    run = Run.start(job(tmp_path, "train.lr=0.1"), "r1")
    assert Run.open(run.url).spec.train.lr == 0.1
    run.bind_data(data_record(listing="y"))


def test_other_spec_under_the_same_id_is_refused_with_the_differences(tmp_path: Path) -> None:
    begin(Run.start(job(tmp_path), "r1"))
    with pytest.raises(RefusedError, match=r"train\.lr: 0\.0001 -> 0\.1"):
        Run.start(job(tmp_path, "train.lr=0.1"), "r1")


def test_fields_that_change_no_step_may_differ(tmp_path: Path) -> None:
    Run.start(job(tmp_path), "r1")
    run = Run.start(job(tmp_path, "train.deadline=60", "train.checkpoint_interval=7"), "r1")
    assert Run.open(run.url).spec.train.checkpoint_interval == 7


def test_number_of_workers_may_change_if_the_batch_size_does_not(tmp_path: Path) -> None:
    begin(Run.start(job(tmp_path, "workers.count=2"), "r1"))
    Run.start(job(tmp_path, "workers.count=3", "train.global_batch_size=2"), "r1")
    with pytest.raises(RefusedError, match=r"global_batch_size: 2 -> 3"):
        Run.start(job(tmp_path, "workers.count=3"), "r1")


def may_change() -> list[str]:
    """The fields that docs/design.md lists, by dotted key."""
    text = " ".join((DOCS / "design.md").read_text().split())
    (sentence,) = re.findall(r"\*\*What may change\*\* on resume: (.*?)\. Anything else is refused", text)
    sections, fields = (re.findall(r"`(\w+)`", part) for part in sentence.split("of `train`"))
    own = [section for section in sections if section in ("workers", "cluster", "storage", "image")]
    assert own == sections
    return [*sections, *(f"train.{field}" for field in fields)]


OTHER = {
    "name": "b", "model": "n/", "output": "elsewhere/", "image": "example/train:2",
    "data.train": "u.jsonl", "data.eval": "e.jsonl", "data.format": "ccpm", "data.on_error": "skip",
    "data.too_long": "skip", "data.strict": "true",
    "lora.r": "4", "lora.alpha": "8", "lora.modules": "[project_q]", "lora.init_from": "d.pt",
    "workers.cpu": "7", "workers.memory": "7Gi", "cluster.namespace": "n", "cluster.queue": "q",
    "cluster.labels": "{a: b}", "train.global_batch_size": "9",
    "storage.endpoint_url": "http://x:1",
    "train.engine": "torch", "train.layout": "sharded", "train.precision": "bf16", "train.recompute_layers": "7",
    "train.lr_decay_style": "linear", "train.save_name": "x", "train.task_name": "x",
    "train.max_steps": "7", "train.lr_decay_iters": "7", "train.deadline": "7", "train.epochs": "7",
}  # fmt: skip
"""Another value for every field whose default says too little of what it may be."""


def other_value(field: str, default: object) -> str:
    if field in OTHER:
        return OTHER[field]
    assert isinstance(default, bool | int | float), field
    return str(not default).lower() if isinstance(default, bool) else str(default + 1)


def fields_of_training() -> list[tuple[str, str]]:
    """Every field of what decides a step, and all others of `OTHER` but those that say where the run lies."""
    defaults = {f"train.{name}": field.default for name, field in TrainSpec.model_fields.items()}
    names = [*defaults, *(name for name in OTHER if name not in defaults and name not in ("name", "output"))]
    return [(name, other_value(name, defaults.get(name))) for name in names]


@pytest.mark.parametrize(("field", "value"), fields_of_training())
def test_what_may_change_is_what_the_docs_list(tmp_path: Path, field: str, value: str) -> None:
    """batch_size counts where it makes the step's size, which is given here."""
    begin(Run.start(job(tmp_path, "train.global_batch_size=8"), "r1"))
    if field in may_change() or field.partition(".")[0] in may_change():
        Run.start(job(tmp_path, "train.global_batch_size=8", f"{field}={value}"), "r1")
        return
    with pytest.raises(RefusedError, match=re.escape(field)):
        Run.start(job(tmp_path, "train.global_batch_size=8", f"{field}={value}"), "r1")


def test_changed_data_is_refused(tmp_path: Path) -> None:
    run = Run.start(job(tmp_path), "r1")
    run.bind_data(data_record(listing="x"))
    run.bind_data(data_record(listing="x"))
    with pytest.raises(RefusedError, match=r'train\.sets\.0\.listing: "x" -> "y"'):
        run.bind_data(data_record(listing="y"))


def test_first_result_is_kept(tmp_path: Path) -> None:
    run = Run.start(job(tmp_path), "r1")
    run.finish("succeeded", "finished")
    assert run.fail(DataError("late"))["state"] == "succeeded"


def test_failure_keeps_its_exit_code(tmp_path: Path) -> None:
    run = Run.start(job(tmp_path), "r1")
    assert exit_code(run.fail(DataError("train.jsonl:3: bad", hint="mend it"))) == 3
    result = run.result()
    assert result is not None
    assert result["reason"] == "train.jsonl:3: bad\n  hint: mend it"


def test_reopen_moves_the_result_to_the_attempts(tmp_path: Path) -> None:
    run = Run.start(job(tmp_path), "r1")
    run.fail(DataError("bad"))
    run.reopen()
    assert run.result() is None
    assert [o.key for o in run.store.list("attempts/")]


def test_run_ids_sort_by_time_and_are_valid() -> None:
    assert check_run_id(new_run_id())
    with pytest.raises(UsageError):
        check_run_id("../x")


def test_run_is_begun_once(tmp_path: Path) -> None:
    Run.begin(job(tmp_path), "r1")
    with pytest.raises(ConflictError):
        Run.begin(job(tmp_path), "r1")


def test_change_spec_refuses_changes_of_the_training(tmp_path: Path) -> None:
    run = Run.begin(job(tmp_path), "r1").change_spec(job(tmp_path, "train.deadline=60"))
    assert Run.open(run.url).spec == run.spec
    with pytest.raises(RefusedError, match=r"train\.lr"):
        run.change_spec(job(tmp_path, "train.lr=0.1"))


def test_concurrent_change_of_a_spec_is_an_error(tmp_path: Path) -> None:
    run = Run.begin(job(tmp_path), "r1")
    run.change_spec(job(tmp_path, "train.deadline=60"))
    with pytest.raises(ConflictError, match="another process"):
        run.change_spec(job(tmp_path, "train.deadline=70"))


def test_corrupt_document_is_named_in_the_error(tmp_path: Path) -> None:
    run = Run.start(job(tmp_path), "r1")
    run.store.put(keys.RESULT, b"[]")
    with pytest.raises(Exception, match=r"result\.json"):
        run.result()
