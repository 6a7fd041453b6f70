import hashlib
import json

import pytest

from cpmbee_job import documents
from cpmbee_job.errors import (
    DamagedError,
    JobFailedError,
    NotFoundError,
    RefusedError,
    StoreError,
    UnfinishedError,
    UsageError,
)
from cpmbee_job.launch.lifecycle.promote import promote
from cpmbee_job.run import keys
from cpmbee_job.run.deltas import read_delta, record_score
from cpmbee_job.run.run import Run
from cpmbee_job.spec import parse_spec
from cpmbee_job.store.files import FileStore

DATA, OTHER = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"


@pytest.fixture
def make_run(tmp_path):
    """A successful run with a delta that has this loss on these examples."""

    def make(run_id, loss=None, digest=DATA, *, ended=True):
        text = f"name: ccpm\nmodel: s3://m/\ndata: {{train: s3://d/}}\noutput: {tmp_path / 'runs'}\n"
        run = Run.begin(parse_spec(text, source="job.yaml"), run_id)
        files = {"delta.safetensors": f"tensors of {run_id}".encode(), "mine.pt": f"pickle of {run_id}".encode()}
        for name, data in files.items():
            run.store.put(f"delta/7.1/{name}", data)
        named = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
        scores = {"eval_loss": loss, "eval_digest": digest}
        run.store.put("delta/7.1/manifest.json", documents.to_json({"run": run.url, "scores": scores, "files": named}))
        for pointer in (keys.BEST, keys.LAST):
            run.store.put(pointer, documents.to_json({"prefix": "delta/7.1/"}))
        if ended:
            run.finish("succeeded", "finished")
        return run

    return make


@pytest.fixture
def target(tmp_path):
    return FileStore(str(tmp_path / "production"))


def in_use(target):
    """The delta that the folder contains."""
    return read_delta(target, json.loads(target.get(keys.BEST))["prefix"])


def evaluated(store, prefix, digest, loss):
    record_score(read_delta(store, prefix), digest, {"loss": loss})


def test_the_first_delta_is_promoted_with_any_score(make_run, target):
    run = make_run("a")
    done = promote(run, target)
    assert (done.promoted, done.changed, done.incumbent) == (True, True, None)
    delta = in_use(target)
    assert delta.run == run.url
    assert target.get(f"{delta.prefix}mine.pt") == b"pickle of a"


def test_promoting_the_same_delta_again_changes_nothing(make_run, target):
    run = make_run("a", 0.5)
    promote(run, target)
    before = target.get(keys.BEST)
    again = promote(run, target, min_gain=1.0)
    assert (again.promoted, again.changed) == (True, False)
    assert target.get(keys.BEST) == before


def test_a_better_delta_replaces_the_incumbent(make_run, target):
    first, second = make_run("a", 0.5), make_run("b", 0.25)
    promote(first, target)
    before = in_use(target)
    done = promote(second, target)
    assert done.incumbent == first.url
    assert done.verdict.gain == 0.25
    assert in_use(target).run == second.url
    assert json.loads(target.get(keys.BEST))["before"] == before.prefix
    assert target.get(f"{before.prefix}mine.pt") == b"pickle of a"


@pytest.mark.parametrize(
    ("loss", "min_gain", "better"), [(0.75, 0, False), (0.5, 0, False), (0.25, 0.25, True), (0.25, 0.3, False)]
)
def test_a_gain_below_min_gain_is_refused(make_run, target, loss, min_gain, better):
    promote(make_run("a", 0.5), target)
    done = promote(make_run("b", loss), target, min_gain=min_gain)
    assert done.promoted == better
    assert in_use(target).run.endswith("b" if better else "a")
    if not better:
        assert sum(entry.key.endswith("manifest.json") for entry in target.list()) == 1
        with pytest.raises(RefusedError, match=f"{loss:.6f} .* 0.500000") as caught:
            done.require_promoted()
        assert caught.value.exit_code == 5


def test_an_incumbent_with_another_eval_digest_is_kept_with_a_hint(make_run, target):
    promote(make_run("a", 0.5, OTHER), target)
    run = make_run("b", 0.25)
    with pytest.raises(RefusedError, match=f"0.250000 .* {DATA}.* 0.500000 on {OTHER}") as caught:
        promote(run, target).require_promoted()
    assert f"evaluate --model MODEL --delta {target.url}" in str(caught.value)
    assert "--record" in str(caught.value)
    evaluated(target, in_use(target).prefix, DATA, 0.3)
    assert promote(run, target).promoted


def test_a_recorded_evaluation_overrides_the_score_of_the_run(make_run, target):
    promote(make_run("a", 0.5), target)
    evaluated(target, in_use(target).prefix, DATA, 0.2)
    assert not promote(make_run("b", 0.25), target).promoted


def test_eval_digest_chooses_the_examples(make_run, target):
    first, second = make_run("a", 0.5), make_run("b", 0.25)
    evaluated(first.store, "delta/7.1/", OTHER, 1.0)
    promote(first, target)
    evaluated(second.store, "delta/7.1/", OTHER, 2.0)
    done = promote(second, target, eval_digest=OTHER)
    assert (done.promoted, done.verdict.candidate, done.verdict.incumbent) == (False, 2.0, 1.0)
    assert promote(second, target).promoted
    assert in_use(target).scores[OTHER].loss == 2.0


def test_a_delta_without_a_score_is_refused(make_run, target):
    promote(make_run("a", 0.5), target)
    with pytest.raises(RefusedError, match=r"has no score.*0\.500000 on") as caught:
        promote(make_run("b", digest=None), target).require_promoted()
    assert "--record" in str(caught.value)


def test_the_only_recorded_evaluation_decides(make_run, target):
    promote(make_run("a", 0.5), target)
    run = make_run("b", digest=None)
    evaluated(run.store, "delta/7.1/", DATA, 0.25)
    assert promote(run, target).verdict.gain == 0.25
    run = make_run("c", digest=None)
    for digest in (DATA, OTHER):
        evaluated(run.store, "delta/7.1/", digest, 0.1)
    with pytest.raises(UsageError, match=f"--eval-digest {DATA} or {OTHER}"):
        promote(run, target)


def test_an_unsuccessful_run_is_not_promoted(make_run, target):
    run = make_run("a", 0.5, ended=False)
    with pytest.raises(UnfinishedError):
        promote(run, target)
    run.finish("failed", "somebody's reason")
    with pytest.raises(JobFailedError, match="somebody's reason"):
        promote(run, target)
    assert list(target.list()) == []


def test_the_folder_of_a_run_is_refused_as_target(make_run):
    first, second = make_run("a", 0.5), make_run("b", 0.25)
    with pytest.raises(RefusedError, match="a run's folder"):
        promote(second, first.store)


def test_damaged_files_are_not_promoted(make_run, target):
    run = make_run("a", 0.5)
    run.store.put("delta/7.1/mine.pt", b"pickle of b")
    with pytest.raises(DamagedError, match=r"mine\.pt"):
        promote(run, target)
    assert target.info(keys.BEST) is None


def test_a_pointer_to_a_missing_delta_is_damaged(make_run, target):
    target.put(keys.BEST, documents.to_json({"prefix": "delta/gone/"}))
    with pytest.raises(DamagedError, match="does not point to a delta"):
        promote(make_run("a", 0.5), target)


def test_a_run_without_a_delta_is_not_found(make_run, target):
    run = make_run("a")
    run.store.delete(keys.BEST)
    with pytest.raises(NotFoundError, match="no delta"):
        promote(run, target)


class DyingStore(FileStore):
    """A store that fails after a number of writes."""

    def __init__(self, url, last):
        super().__init__(url)
        self.left = last

    def put(self, key, data, **condition):
        self._count(key)
        return super().put(key, data, **condition)

    def upload(self, path, key, *rest, **options):
        self._count(key)
        super().upload(path, key, *rest, **options)

    def _count(self, key):
        self.left -= 1
        if self.left < 0:
            raise StoreError(f"killed before {key}")


@pytest.mark.parametrize("last", range(4))
def test_an_interrupted_promote_keeps_the_old_delta_and_is_completed_by_the_next(make_run, target, last):
    promote(make_run("a", 0.5), target)
    run = make_run("b", 0.25)
    with pytest.raises(StoreError, match="killed"):
        promote(run, DyingStore(target.url, last))
    assert in_use(target).run.endswith("a")
    assert promote(run, target).changed
    delta = in_use(target)
    assert {name: target.get(delta.prefix + name) for name in delta.files}["mine.pt"] == b"pickle of b"


class LateStore(FileStore):
    """A store in which another promote completes just before this one's pointer is written."""

    def __init__(self, url, meanwhile):
        super().__init__(url)
        self.meanwhile = meanwhile

    def put(self, key, data, **condition):
        if key == keys.BEST and self.meanwhile is not None:
            promote(self.meanwhile, FileStore(self.url))
            self.meanwhile = None
        return super().put(key, data, **condition)


@pytest.mark.parametrize(("other", "promoted"), [(0.1, False), (0.3, True)])
@pytest.mark.parametrize("empty", [True, False])
def test_the_second_of_two_concurrent_promotes_is_compared_with_the_first(make_run, target, other, promoted, empty):
    if not empty:
        promote(make_run("a", 0.5), target)
    done = promote(make_run("b", 0.2), LateStore(target.url, make_run("c", other)))
    assert done.promoted == promoted
    assert done.verdict.incumbent == other
    assert in_use(target).run.endswith("b" if promoted else "c")
