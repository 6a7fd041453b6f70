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
    """A spec with local data and a remote model."""
    (tmp_path / "train.jsonl").write_text("{}\n")
    text = "name: a\nmodel: s3://m/\ndata: {train: train.jsonl}\noutput: s3://out/runs/\n"
    return lambda *overrides: parse_spec(text, source="job.yaml", overrides=overrides, base=tmp_path)


@pytest.fixture
def store(tmp_path):
    return FileStore(str(tmp_path / "store"))


class Bars:
    """Progress bars that record totals and progress."""

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


def test_the_url_of_a_file_contains_its_digest(job, store):
    spec, uploads = hashed(job())
    upload_inputs(uploads, store)
    (entry,) = store.list()
    assert spec.data.train == f"s3://out/runs/uploads/{entry.key}"
    assert store.get(entry.key) == b"{}\n"


def test_equal_content_has_the_same_url(job, tmp_path):
    folder(tmp_path / "elsewhere", **{"train.jsonl": "{}\n"})
    first, _ = hashed(job())
    assert hashed(job("data.train=elsewhere/train.jsonl"))[0].data.train == first.data.train
    (tmp_path / "elsewhere" / "train.jsonl").write_text("{ }\n")
    assert hashed(job("data.train=elsewhere/train.jsonl"))[0].data.train != first.data.train


def test_a_folder_keeps_its_names_without_hidden_files(job, store, tmp_path):
    folder(tmp_path / "d", a="1", b__c="2", _x="3", _y__z="4")
    folder(tmp_path / "d", **{".hidden": "5"})
    spec, uploads = hashed(job("data.train=d/"))
    upload_inputs(uploads, store)
    assert spec.data.train.endswith(f"/{next(iter(uploads)).partition('/')[0]}/")
    assert names(store) == ["a", "b/c"]


def test_file_urls_are_local(job, tmp_path):
    spec, _ = hashed(job(f"data.train=file://{tmp_path}/train.jsonl"))
    assert spec.data.train == hashed(job())[0].data.train


def test_only_the_files_directly_in_a_model_folder_are_uploaded(job, store, tmp_path):
    folder(tmp_path / "m", **{"vocab.txt": "v", "config.json": "{}", "pytorch_model.bin": "w", "runs__x": "no"})
    spec, uploads = hashed(job("model=m/", "data.train=s3://d/"))
    upload_inputs(uploads, store)
    assert names(store) == ["config.json", "pytorch_model.bin", "vocab.txt"]
    assert spec.model.startswith("s3://out/runs/uploads/")


def test_a_folder_that_is_not_a_model_is_rejected(job, tmp_path):
    folder(tmp_path / "m", **{"config.json": "{}", "weights.zip": "w"})
    with pytest.raises(ModelError, match=r"^model: "):
        find_inputs(job("model=m/"))


def test_a_delta_file_is_uploaded_with_its_manifest(job, store, tmp_path):
    folder(tmp_path / "delta", **{"best.pt": "p", "manifest.json": "{}", "other.pt": "no"})
    spec, uploads = hashed(job("lora.init_from=delta/best.pt", "data.train=s3://d/"))
    upload_inputs(uploads, store)
    assert names(store) == ["best.pt", "manifest.json"]
    assert spec.lora.init_from is not None
    assert spec.lora.init_from.endswith("/best.pt")


def test_the_folder_of_a_run_stands_for_its_best_delta(job, store, tmp_path):
    best = json.dumps({"prefix": "delta/7.1/"})
    folder(tmp_path / "run", delta__BEST=best, **{"delta/7.1/manifest.json": "{}", "delta/9.1/manifest.json": "{ }"})
    _, uploads = hashed(job("lora.init_from=run/", "data.train=s3://d/"))
    upload_inputs(uploads, store)
    assert names(store) == ["manifest.json"]


def test_existing_objects_are_not_uploaded_again(job, store):
    _, uploads = hashed(job())
    assert upload_inputs(uploads, store) == 3
    assert upload_inputs(uploads, store) == 0


def test_a_different_object_is_replaced(job, store):
    _, uploads = hashed(job())
    upload_inputs(uploads, store)
    (entry,) = store.list()
    store.put(entry.key, b"xx\n")
    upload_inputs(uploads, store)
    assert store.get(entry.key) == b"{}\n"


def test_both_steps_report_progress(job, store):
    bars = Bars()
    _, uploads = hashed(job(), bars)
    upload_inputs(uploads, store, bars)
    assert bars.totals == bars.moved == {"hash": 3, "upload": 3}


def test_a_file_that_changes_before_hashing_is_refused(job, tmp_path):
    places = find_inputs(job())
    (tmp_path / "train.jsonl").write_text("longer than before\n")
    with pytest.raises(StoreError, match=r"train\.jsonl: changed"):
        hash_inputs(job(), places)


def test_a_file_that_changes_before_the_upload_is_refused_and_deleted(job, store, tmp_path):
    _, uploads = hashed(job())
    (tmp_path / "train.jsonl").write_text("[]\n")
    os.utime(tmp_path / "train.jsonl", (1, 1))
    with pytest.raises(StoreError, match="changed while it was uploaded"):
        upload_inputs(uploads, store)
    assert names(store) == []


def test_hashing_writes_nothing(job, store):
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
def test_an_invalid_path_is_rejected_with_its_key(job, tmp_path, override, words):
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
def test_other_than_regular_files_are_rejected(job, tmp_path, kind):
    folder(tmp_path / "d", a="1")
    path = tmp_path / "d" / "b"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "loop" else tmp_path / "nowhere")
    with pytest.raises(SpecError, match="not a regular file"):
        find_inputs(job("data.train=d/"))


def test_an_invalid_object_key_is_rejected(job, tmp_path):
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
