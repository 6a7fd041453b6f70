import pytest

from cpmbee_job.errors import ModelError, PreflightError
from cpmbee_job.run.identity import generation, has_same_outcome, identity, run_id
from cpmbee_job.spec import StorageSpec, parse_spec

STORAGE = StorageSpec()
SAME = "0123456789ab"


@pytest.fixture
def job(tmp_path):
    for name in ("vocab.txt", "config.json", "model.safetensors"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_text(name)
    (tmp_path / "train.jsonl").write_text("{}\n")
    text = "name: a\nmodel: model/\ndata: {train: train.jsonl}\noutput: runs/\n"
    return lambda *overrides: parse_spec(text, source="job.yaml", overrides=overrides, base=tmp_path)


def test_the_same_job_has_the_same_identity_wherever_it_runs(job):
    same = job("image=example/b:1", "workers.memory=1Gi", "cluster.namespace=b", "storage.region=x", "name=b")
    assert identity(job(), STORAGE) == identity(same, STORAGE)


@pytest.mark.parametrize("override", ["train.lr=0.1", "lora.r=4", "workers.count=2", "data.on_error=skip"])
def test_what_changes_the_outcome_changes_it(job, override):
    assert identity(job(), STORAGE) != identity(job(override), STORAGE)


def test_every_set_of_a_list_counts(job, tmp_path):
    sets = f"data.train=[{{path: {tmp_path}/train.jsonl}}, {{path: {tmp_path}/more.jsonl}}]"
    (tmp_path / "more.jsonl").write_text("{}\n")
    before = identity(job(sets), STORAGE)
    (tmp_path / "more.jsonl").write_text("something else")
    assert identity(job(sets), STORAGE) != before


def test_a_key_changes_it(job):
    assert identity(job(), STORAGE) != identity(job(), STORAGE, "again")


@pytest.mark.parametrize("name", ["train.jsonl", "model/config.json", "model/model.safetensors"])
def test_other_content_in_the_same_place_changes_it(job, tmp_path, name):
    before = identity(job(), STORAGE)
    (tmp_path / name).write_text("something else")
    assert identity(job(), STORAGE) != before


def test_folders_in_the_model_s_do_not_count(job, tmp_path):
    before = identity(job(), STORAGE)
    (tmp_path / "model" / "other").mkdir()
    (tmp_path / "model" / "other" / "x").write_text("x")
    assert identity(job(), STORAGE) == before


def test_an_uploaded_place_counts_by_its_name_before_it_is_there(job, tmp_path):
    place = f"{tmp_path}/runs/uploads/{'0' * 32}/"
    assert identity(job(f"data.train={place}train.jsonl", f"model={place}"), STORAGE)


@pytest.mark.parametrize("key", ["data.train", "data.eval", "model", "lora.init_from"])
def test_what_is_not_there_is_named_with_its_key(job, key):
    with pytest.raises(PreflightError, match=f"^{key}: "):
        identity(job(f"{key}=nothing/"), STORAGE)


@pytest.mark.parametrize("missing", ["vocab.txt", "config.json", "model.safetensors"])
def test_an_incomplete_model_is_refused(job, tmp_path, missing):
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(ModelError, match="weights" if "model" in missing else missing):
        identity(job(), STORAGE)


def test_runs_of_an_identity_are_numbered():
    assert run_id(SAME, 1) == SAME
    assert run_id(SAME, 12) == f"{SAME}-12"
    assert [generation(SAME, run_id(SAME, number)) for number in (1, 2, 12)] == [1, 2, 12]


@pytest.mark.parametrize("other", ["0123456789ac", f"{SAME}-1", f"{SAME}-x", f"{SAME}-02", f"{SAME}01234567", "x"])
def test_other_ids_are_none_of_them(other):
    assert generation(SAME, other) == 0


def test_runs_with_a_key_have_the_outcome_of_those_without(job):
    plain, keyed, other = (identity(job(), STORAGE, key) for key in ("", "again", "once more"))
    assert len({plain, keyed, other}) == 3
    for one in (plain, keyed):
        assert all(has_same_outcome(one, run_id(of, number)) for of in (plain, keyed, other) for number in (1, 2))
        assert generation(one, other) == 0


@pytest.mark.parametrize("other", ["0123456789ac", "0123456789ac01234567", f"{SAME}0123", "20260131-235959-a1b2"])
def test_what_trains_something_else_has_another_outcome(other):
    assert not has_same_outcome(SAME, other)
