import hashlib
import json
from pathlib import Path

import pytest

from cpmbee_job import documents
from cpmbee_job.errors import DamagedError, NotFoundError, RefusedError, StoreError, UsageError
from cpmbee_job.launch.lifecycle.fetch import fetch
from cpmbee_job.run import keys
from cpmbee_job.store.files import FileStore


@pytest.fixture
def store(tmp_path):
    """A run that ended, with a best delta and a last one."""
    store = FileStore(str(tmp_path / "runs" / "a" / "r1"))
    for key in (keys.SPEC, keys.METRICS, keys.RESULT, keys.STATUS):
        store.put(key, key.encode())
    store.put(keys.log_key("pod-0", 1), b"a line\n")
    store.put("tensorboard/00001/events", b"events")
    for step, pointer in ((7, keys.BEST), (9, keys.LAST)):
        put_delta(store, step)
        store.put(pointer, documents.to_json({"prefix": f"delta/{step}.1/", "step": step, "attempt": 1}))
    return store


def put_delta(store, step):
    files = {"delta.safetensors": b"tensors of %d" % step, "mine.pt": b"pickle of %d" % step}
    for name, data in files.items():
        store.put(f"delta/{step}.1/{name}", data)
    names = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    store.put(f"delta/{step}.1/manifest.json", documents.to_json({"step": step, "files": names}))


def there(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_fetch_writes_a_folder(store, tmp_path):
    target = tmp_path / "new" / "a"
    names = fetch(store, target)
    delta = ["delta/BEST", "delta/delta.safetensors", "delta/manifest.json", "delta/mine.pt"]
    assert there(target) == names
    assert names == sorted([*delta, "logs/pod-0/00001.log", "metrics.jsonl", "result.json", "spec.yaml"])
    assert (target / "delta" / "mine.pt").read_bytes() == b"pickle of 7"
    assert [path.name for path in target.parent.iterdir()] == ["a"]


def test_the_last_delta_can_be_fetched(store, tmp_path):
    fetch(store, tmp_path / "t", ["delta"], last=True)
    assert (tmp_path / "t" / "delta" / "mine.pt").read_bytes() == b"pickle of 9"


def test_the_folder_has_a_pointer_to_its_delta(store, tmp_path):
    fetch(store, tmp_path / "t", ["delta"])
    prefix = json.loads((tmp_path / "t" / keys.BEST).read_bytes())["prefix"]
    assert (tmp_path / "t" / prefix / "delta.safetensors").is_file()


def test_only_the_given_kinds_are_fetched(store, tmp_path):
    assert fetch(store, tmp_path / "t", ["tensorboard", "status"]) == ["status.json", "tensorboard/00001/events"]


def test_missing_default_kinds_are_skipped(store, tmp_path):
    store.delete(keys.RESULT)
    assert "result.json" not in fetch(store, tmp_path / "t")


def test_a_missing_given_kind_is_an_error(store, tmp_path):
    store.delete(keys.RESULT)
    with pytest.raises(NotFoundError, match="no result yet"):
        fetch(store, tmp_path / "t", ["metrics", "result"])
    assert not (tmp_path / "t").exists()


def test_a_run_without_a_delta_is_an_error(store, tmp_path):
    store.delete(keys.BEST)
    with pytest.raises(NotFoundError, match="no delta yet") as caught:
        fetch(store, tmp_path / "t")
    assert "--what" in str(caught.value)
    assert not (tmp_path / "t").exists()
    assert "metrics.jsonl" in fetch(store, tmp_path / "t", ["metrics", "logs"])


def test_a_delta_that_differs_from_its_manifest_is_damaged(store, tmp_path):
    store.put("delta/7.1/mine.pt", b"pickle of 8")
    with pytest.raises(DamagedError, match=r"mine\.pt: size or SHA-256 differs"):
        fetch(store, tmp_path / "t")
    assert there(tmp_path / "t") == []


@pytest.mark.parametrize("manifest", [b"no json", b"[]", b"{}", b'{"files": {"a": {"size": 1}}}'])
def test_a_manifest_without_hashes_is_damaged(store, tmp_path, manifest):
    store.put("delta/7.1/manifest.json", manifest)
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        fetch(store, tmp_path / "t")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", "", "manifest.json"])
def test_a_manifest_cannot_write_outside_the_folder(store, tmp_path, name):
    store.put("delta/7.1/manifest.json", documents.to_json({"files": {name: {"size": 1, "sha256": "0"}}}))
    with pytest.raises(DamagedError, match="is not a valid name for a file of a delta"):
        fetch(store, tmp_path / "t")


class Training(FileStore):
    """A run that replaces its best delta while that is fetched."""

    def download(self, key, path, progress=lambda _: None):
        if key.startswith("delta/7.1/"):
            put_delta(self, 8)
            self.put(keys.BEST, documents.to_json({"prefix": "delta/8.1/"}))
            for entry in self.list("delta/7.1/"):
                self.delete(entry.key)
        super().download(key, path, progress)


def test_a_delta_pruned_meanwhile_is_replaced_by_the_new_best(store, tmp_path):
    fetch(Training(store.url), tmp_path / "t", ["delta"])
    assert (tmp_path / "t" / "delta" / "mine.pt").read_bytes() == b"pickle of 8"


class Cut(FileStore):
    """A run's store that fails after a number of downloads."""

    def __init__(self, url, downloads):
        super().__init__(url)
        self.left, self.fetched = downloads, []

    def download(self, key, path, progress=lambda _: None):
        if not self.left:
            raise StoreError("the connection is gone")
        self.left -= 1
        self.fetched.append(key)
        super().download(key, path, progress)


def cut(store, target, downloads):
    with pytest.raises(StoreError, match="gone"):
        fetch(Cut(store.url, downloads), target)


def test_an_interrupted_download_is_continued(store, tmp_path):
    target = tmp_path / "new" / "a"
    cut(store, target, 2)
    assert not target.exists()
    rest = Cut(store.url, 100)
    names = fetch(rest, target)
    assert [key for key in rest.fetched if key.startswith("delta/")] == ["delta/7.1/manifest.json"]
    assert there(target) == names
    assert [path.name for path in target.parent.iterdir()] == ["a"]


def test_files_of_an_interrupted_download_are_not_mixed_with_another_delta(store, tmp_path):
    cut(store, tmp_path / "t", 4)
    put_delta(store, 8)
    store.put("delta/8.1/mine.pt", b"the only one")
    only = {"mine.pt": {"size": 12, "sha256": hashlib.sha256(b"the only one").hexdigest()}}
    store.put("delta/8.1/manifest.json", documents.to_json({"step": 8, "files": only}))
    store.put(keys.BEST, documents.to_json({"prefix": "delta/8.1/"}))
    assert fetch(store, tmp_path / "t", ["delta"]) == ["delta/BEST", "delta/manifest.json", "delta/mine.pt"]
    assert there(tmp_path / "t") == ["delta/BEST", "delta/manifest.json", "delta/mine.pt"]
    assert (tmp_path / "t" / "delta" / "mine.pt").read_bytes() == b"the only one"


def test_files_changed_since_the_interruption_are_downloaded_again(store, tmp_path):
    cut(store, tmp_path / "t", 2)
    (kept,) = tmp_path.glob(".*/delta/mine.pt")
    kept.write_bytes(b"pickle of X")
    fetch(store, tmp_path / "t")
    assert (tmp_path / "t" / "delta" / "mine.pt").read_bytes() == b"pickle of 7"


def test_an_interruption_before_the_first_file_leaves_nothing(store, tmp_path):
    cut(store, tmp_path / "new" / "a", 0)
    assert list((tmp_path / "new").iterdir()) == []


def test_two_concurrent_fetches_have_the_same_result(store, tmp_path):
    target = tmp_path / "new" / "a"

    class Crowded(FileStore):
        def download(self, key, path, progress=lambda _: None):
            if not target.exists():
                fetch(store, target)
            super().download(key, path, progress)

    assert fetch(Crowded(store.url), target) == there(target)
    assert [path.name for path in target.parent.iterdir()] == ["a"]


def test_fetching_again_keeps_the_folder(store, tmp_path):
    fetch(store, tmp_path / "t")
    fetch(store, tmp_path / "t")
    assert "metrics.jsonl" in there(tmp_path / "t")


def test_a_folder_with_other_files_is_refused(store, tmp_path):
    fetch(store, tmp_path / "t")
    store.put(keys.METRICS, b"more")
    with pytest.raises(RefusedError, match="already exists"):
        fetch(store, tmp_path / "t")
    assert (tmp_path / "t" / keys.METRICS).read_bytes() == keys.METRICS.encode()


def test_an_empty_folder_is_filled(store, tmp_path):
    (tmp_path / "t").mkdir()
    assert there(tmp_path / "t") == []
    fetch(store, tmp_path / "t", ["spec"])
    assert there(tmp_path / "t") == ["spec.yaml"]


def test_a_file_as_target_is_refused(store, tmp_path):
    (tmp_path / "t").touch()
    with pytest.raises(RefusedError, match="is a file"):
        fetch(store, tmp_path / "t")


def test_an_unknown_kind_is_rejected_with_the_valid_ones(store, tmp_path):
    with pytest.raises(UsageError, match="unknown kind checkpoints") as caught:
        fetch(store, Path(tmp_path / "t"), ["checkpoints"])
    assert "tensorboard" in str(caught.value)
