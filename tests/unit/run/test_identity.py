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


def test_identity_does_not_depend_on_where_the_job_runs(job):
    same = job("image=example/b:1", "workers.memory=1Gi", "cluster.namespace=b", "storage.region=x", "name=b")
    assert identity(job(), STORAGE) == identity(same, STORAGE)


@pytest.mark.parametrize("override", ["train.lr=0.1", "lora.r=4", "workers.count=2", "data.on_error=skip"])
def test_fields_that_change_the_outcome_change_the_identity(job, override):
    assert identity(job(), STORAGE) != identity(job(override), STORAGE)


def test_content_of_every_data_set_counts(job, tmp_path):
    sets = f"data.train=[{{path: {tmp_path}/train.jsonl}}, {{path: {tmp_path}/more.jsonl}}]"
    (tmp_path / "more.jsonl").write_text("{}\n")
    before = identity(job(sets), STORAGE)
    (tmp_path / "more.jsonl").write_text("something else")
    assert identity(job(sets), STORAGE) != before


def test_key_changes_the_identity(job):
    assert identity(job(), STORAGE) != identity(job(), STORAGE, "again")


@pytest.mark.parametrize("name", ["train.jsonl", "model/config.json", "model/model.safetensors"])
def test_content_of_the_inputs_changes_the_identity(job, tmp_path, name):
    before = identity(job(), STORAGE)
    (tmp_path / name).write_text("something else")
    assert identity(job(), STORAGE) != before


def test_subfolders_of_the_model_do_not_count(job, tmp_path):
    before = identity(job(), STORAGE)
    (tmp_path / "model" / "other").mkdir()
    (tmp_path / "model" / "other" / "x").write_text("x")
    assert identity(job(), STORAGE) == before


def test_identity_of_an_upload_is_known_before_it_exists(job, tmp_path):
    url = f"{tmp_path}/runs/uploads/{'0' * 32}/"
    assert identity(job(f"data.train={url}train.jsonl", f"model={url}"), STORAGE)


@pytest.mark.parametrize("key", ["data.train", "data.eval", "model", "lora.init_from"])
def test_missing_input_is_named_with_its_key(job, key):
    with pytest.raises(PreflightError, match=f"^{key}: "):
        identity(job(f"{key}=nothing/"), STORAGE)


@pytest.mark.parametrize("missing", ["vocab.txt", "config.json", "model.safetensors"])
def test_incomplete_model_is_an_error(job, tmp_path, missing):
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(ModelError, match="weights" if "model" in missing else missing):
        identity(job(), STORAGE)


def test_runs_of_an_identity_are_numbered():
    assert run_id(SAME, 1) == SAME
    assert run_id(SAME, 12) == f"{SAME}-12"
    assert [generation(SAME, run_id(SAME, number)) for number in (1, 2, 12)] == [1, 2, 12]


@pytest.mark.parametrize("other", ["0123456789ac", f"{SAME}-1", f"{SAME}-x", f"{SAME}-02", f"{SAME}01234567", "x"])
def test_other_run_ids_have_no_generation(other):
    assert generation(SAME, other) == 0


def test_outcome_does_not_depend_on_the_key(job):
    plain, keyed, other = (identity(job(), STORAGE, key) for key in ("", "again", "once more"))
    assert len({plain, keyed, other}) == 3
    for one in (plain, keyed):
        assert all(has_same_outcome(one, run_id(of, number)) for of in (plain, keyed, other) for number in (1, 2))
        assert generation(one, other) == 0


@pytest.mark.parametrize("other", ["0123456789ac", "0123456789ac01234567", f"{SAME}0123", "20260131-235959-a1b2"])
def test_other_identities_have_another_outcome(other):
    assert not has_same_outcome(SAME, other)
