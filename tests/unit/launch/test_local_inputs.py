import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from cpmbee_job.errors import ModelError, SpecError, StoreError
from cpmbee_job.launch.local_inputs import find_inputs, hash_inputs, upload_inputs
from cpmbee_job.spec import parse_spec
from cpmbee_job.store.files import FileStore


@pytest.fixture
def job(tmp_path):
    """A spec whose data lie on this machine and whose model does not."""
    (tmp_path / "train.jsonl").write_text("{}\n")
    text = "name: a\nmodel: s3://m/\ndata: {train: train.jsonl}\noutput: s3://out/runs/\n"
    return lambda *overrides: parse_spec(text, source="job.yaml", overrides=overrides, base=tmp_path)


@pytest.fixture
def store(tmp_path):
    return FileStore(str(tmp_path / "store"))


class Bars:
    """Bars that note what they are told."""

    def __init__(self):
        self.totals = {}
        self.moved = {}

    @contextmanager
    def __call__(self, title, total):
        self.totals[title], self.moved[title] = total, 0

        def moved(count):
            self.moved[title] += count

        yield moved


def hashed(spec, bar=None):
    return hash_inputs(spec, find_inputs(spec), bar or Bars())


def names(store):
    return [entry.key.partition("/")[2] for entry in store.list()]


def folder(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_file_goes_to_a_place_named_by_its_content(job, store):
    spec, uploads = hashed(job())
    upload_inputs(uploads, store)
    (entry,) = store.list()
    assert spec.data.train == f"s3://out/runs/uploads/{entry.key}"
    assert store.get(entry.key) == b"{}\n"


def test_the_same_content_has_the_same_place_wherever_it_lies(job, tmp_path):
    folder(tmp_path / "elsewhere", **{"train.jsonl": "{}\n"})
    first, _ = hashed(job())
    assert hashed(job("data.train=elsewhere/train.jsonl"))[0].data.train == first.data.train
    (tmp_path / "elsewhere" / "train.jsonl").write_text("{ }\n")
    assert hashed(job("data.train=elsewhere/train.jsonl"))[0].data.train != first.data.train


def test_a_folder_keeps_its_names_without_hidden_ones(job, store, tmp_path):
    folder(tmp_path / "d", a="1", b__c="2", _x="3", _y__z="4")
    folder(tmp_path / "d", **{".hidden": "5"})
    spec, uploads = hashed(job("data.train=d/"))
    upload_inputs(uploads, store)
    assert spec.data.train.endswith(f"/{uploads[0].digest}/")
    assert names(store) == ["a", "b/c"]


def test_file_urls_are_this_machine_s_too(job, tmp_path):
    spec, _ = hashed(job(f"data.train=file://{tmp_path}/train.jsonl"))
    assert spec.data.train == hashed(job())[0].data.train


def test_of_a_model_only_files_directly_in_the_folder_go(job, store, tmp_path):
    folder(tmp_path / "m", **{"vocab.txt": "v", "config.json": "{}", "pytorch_model.bin": "w", "runs__x": "no"})
    spec, uploads = hashed(job("model=m/", "data.train=s3://d/"))
    upload_inputs(uploads, store)
    assert names(store) == ["config.json", "pytorch_model.bin", "vocab.txt"]
    assert spec.model.startswith("s3://out/runs/uploads/")


def test_a_folder_that_is_no_model_is_not_uploaded(job, tmp_path):
    folder(tmp_path / "m", **{"config.json": "{}", "weights.zip": "w"})
    with pytest.raises(ModelError, match=r"^model: "):
        find_inputs(job("model=m/"))


def test_a_delta_file_takes_its_manifest_along(job, store, tmp_path):
    folder(tmp_path / "delta", **{"best.pt": "p", "manifest.json": "{}", "other.pt": "no"})
    spec, uploads = hashed(job("lora.init_from=delta/best.pt", "data.train=s3://d/"))
    upload_inputs(uploads, store)
    assert names(store) == ["best.pt", "manifest.json"]
    assert spec.lora.init_from is not None
    assert spec.lora.init_from.endswith("/best.pt")


def test_of_a_run_s_folder_the_best_delta_is_meant(job, store, tmp_path):
    best = json.dumps({"prefix": "delta/7.1/"})
    folder(tmp_path / "run", delta__BEST=best, **{"delta/7.1/manifest.json": "{}", "delta/9.1/manifest.json": "{ }"})
    _, uploads = hashed(job("lora.init_from=run/", "data.train=s3://d/"))
    upload_inputs(uploads, store)
    assert names(store) == ["manifest.json"]


def test_what_is_there_is_not_sent_again(job, store):
    _, uploads = hashed(job())
    assert upload_inputs(uploads, store) == 3
    assert upload_inputs(uploads, store) == 0


def test_what_is_there_but_is_something_else_is_mended(job, store):
    _, uploads = hashed(job())
    upload_inputs(uploads, store)
    (entry,) = store.list()
    store.put(entry.key, b"xx\n")
    upload_inputs(uploads, store)
    assert store.get(entry.key) == b"{}\n"


def test_progress_is_told_of_both_steps(job, store):
    bars = Bars()
    _, uploads = hashed(job(), bars)
    upload_inputs(uploads, store, bars)
    assert bars.totals == bars.moved == {"hash": 3, "upload": 3}


def test_a_file_that_changes_before_it_is_hashed_is_refused(job, tmp_path):
    places = find_inputs(job())
    (tmp_path / "train.jsonl").write_text("longer than before\n")
    with pytest.raises(StoreError, match=r"train\.jsonl: changed"):
        hash_inputs(job(), places)


def test_a_file_that_changes_before_it_is_sent_is_refused_and_leaves_nothing(job, store, tmp_path):
    _, uploads = hashed(job())
    (tmp_path / "train.jsonl").write_text("[]\n")
    os.utime(tmp_path / "train.jsonl", (1, 1))
    with pytest.raises(StoreError, match="changed while it was uploaded"):
        upload_inputs(uploads, store)
    assert names(store) == []


def test_nothing_is_written_before_it_is_asked_for(job, store):
    hashed(job())
    assert names(store) == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.train=nowhere.jsonl", r"^data\.train: .*no such file or folder"),
        ("data.eval=empty/", r"^data\.eval: .*no files in that folder"),
        ("model=train.jsonl", "^model: .*must be a folder"),
        ("lora.init_from=train.jsonl", r"^lora\.init_from: .*not a delta"),
    ],
)
def test_a_path_that_can_t_be_uploaded_is_named_with_its_key(job, tmp_path, override, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".keep").touch()
    with pytest.raises(SpecError, match=words):
        find_inputs(job(override))


def test_links_to_files_are_followed_and_links_to_folders_refused(job, store, tmp_path):
    folder(tmp_path / "d", a="1")
    (tmp_path / "d" / "b").symlink_to(tmp_path / "train.jsonl")
    _, uploads = hashed(job("data.train=d/"))
    upload_inputs(uploads, store)
    assert names(store) == ["a", "b"]
    (tmp_path / "d" / "round").symlink_to(tmp_path / "d")
    with pytest.raises(SpecError, match="round: a link to a folder"):
        find_inputs(job("data.train=d/"))


@pytest.mark.parametrize("kind", ["dangling", "loop", "pipe"])
def test_what_is_no_file_is_refused(job, tmp_path, kind):
    folder(tmp_path / "d", a="1")
    path = tmp_path / "d" / "b"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "loop" else tmp_path / "nowhere")
    with pytest.raises(SpecError, match="not a regular file"):
        find_inputs(job("data.train=d/"))


def test_a_name_that_no_object_can_have_is_refused(job, tmp_path):
    Path(tmp_path / "d").mkdir()
    (tmp_path / "d" / "a\nb").write_text("1")
    with pytest.raises(SpecError, match="rename the file"):
        find_inputs(job("data.train=d/"))


def test_every_set_of_a_list_is_uploaded(job, store, tmp_path):
    (tmp_path / "more.jsonl").write_text('{"<ans>": "x"}\n')
    spec, uploads = hashed(job("data.train=[{path: train.jsonl}, {path: s3://b/x}, {path: more.jsonl}]"))
    upload_inputs(uploads, store)
    assert sorted(names(store)) == ["more.jsonl", "train.jsonl"]
    paths = [one.path for one in spec.data.train_sets]
    assert [path.rpartition("/")[2] for path in paths] == ["train.jsonl", "x", "more.jsonl"]
    assert all(path.startswith("s3://") for path in paths)
