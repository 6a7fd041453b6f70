"""`submit --if-changed`, as a schedule uses it, on a cluster in memory and a real object store."""

from pathlib import Path

import pytest

from cpmbee_job import documents
from cpmbee_job.launch.kube.protocol import PYTORCHJOBS
from cpmbee_job.launch.lifecycle.submit import Submission
from cpmbee_job.run import keys
from cpmbee_job.run.run import Run
from cpmbee_job.spec import JobSpec, StorageSpec
from tests.fake_cluster import FakeCluster
from tests.integration.jobs import cli
from tests.integration.submitting import Died, DyingCluster, jobs, run_of, submit


def fire(spec: JobSpec, cluster: FakeCluster) -> Submission:
    return submit(spec, cluster, if_changed=True)


def end(run: Run, state: str, at: str, cluster: FakeCluster) -> None:
    """Finish the run at that time and delete its job."""
    record = {"state": state, "reason": "a reason", "run": run.url, "ended_at": f"2026-01-{at}T00:00:00Z"}
    run.store.put(keys.RESULT, documents.to_json(record))
    cluster.objects.get(PYTORCHJOBS, {}).clear()


def write_rows(folder: Path, answer: str) -> None:
    (folder / "train.jsonl").write_text(f'{{"input": "a", "<ans>": "{answer}"}}\n')


def test_the_first_scheduled_submit_begins_a_run_and_later_ones_adopt_it_while_it_is_active(job, cluster):
    first, second = fire(job(), cluster), fire(job(), cluster)
    assert (first.adopted, second.adopted) == (False, True)
    assert second.found.reference == first.found.reference
    assert len(jobs(cluster)) == 1


def test_unchanged_inputs_begin_no_run(job, cluster, s3_storage):
    first = fire(job(), cluster)
    end(run_of(first, s3_storage), "succeeded", "01", cluster)
    again = fire(job(), cluster)
    assert (again.adopted, again.succeeded, again.found.reference) == (True, True, first.found.reference)
    assert jobs(cluster) == []


@pytest.mark.parametrize("override", ["train.lr=3e-4", "data.eval=null"])
def test_changed_training_begins_a_run(job, cluster, s3_storage, override):
    end(run_of(fire(job(), cluster), s3_storage), "succeeded", "01", cluster)
    assert not fire(job(override), cluster).adopted


def test_changes_that_do_not_affect_training_begin_no_run(job, cluster, s3_storage):
    end(run_of(fire(job(), cluster), s3_storage), "succeeded", "01", cluster)
    assert fire(job("workers.memory=1Gi"), cluster).adopted


def test_restored_data_is_trained_on_again(job, cluster, s3_storage: StorageSpec, tmp_path):
    runs = []
    for day, answer in (("01", "b"), ("02", "c"), ("03", "b")):
        write_rows(tmp_path, answer)
        runs.append(fire(job(), cluster))
        assert not runs[-1].adopted
        end(run_of(runs[-1], s3_storage), "succeeded", day, cluster)
    assert runs[2].found.run_id == f"{runs[0].found.run_id}-2"
    assert fire(job(), cluster).found.reference == runs[2].found.reference


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_run_that_failed_or_was_cancelled_is_followed_by_another(job, cluster, s3_storage, state):
    first = fire(job(), cluster)
    end(run_of(first, s3_storage), state, "01", cluster)
    second = fire(job(), cluster)
    assert not second.adopted
    assert second.found.run_id == f"{first.found.run_id}-2"
    assert run_of(first, s3_storage).result() is not None


def test_a_failure_does_not_hide_the_success_before_it(job, cluster, s3_storage, tmp_path):
    first = fire(job(), cluster)
    end(run_of(first, s3_storage), "succeeded", "01", cluster)
    write_rows(tmp_path, "bad")
    end(run_of(fire(job(), cluster), s3_storage), "failed", "02", cluster)
    write_rows(tmp_path, "b")
    assert fire(job(), cluster).found.reference == first.found.reference


def test_a_success_with_a_key_counts(job, cluster, s3_storage, tmp_path):
    with_key = submit(job(), cluster, key="pipeline 7")
    end(run_of(with_key, s3_storage), "succeeded", "01", cluster)
    again = fire(job(), cluster)
    assert (again.adopted, again.succeeded, again.found.reference) == (True, True, with_key.found.reference)
    assert jobs(cluster) == []
    write_rows(tmp_path, "c")
    assert not fire(job(), cluster).adopted


def test_a_success_of_other_training_with_a_key_counts_too(job, cluster, s3_storage, tmp_path):
    first = fire(job(), cluster)
    end(run_of(first, s3_storage), "succeeded", "01", cluster)
    write_rows(tmp_path, "c")
    end(run_of(submit(job(), cluster, key="pipeline 7"), s3_storage), "succeeded", "02", cluster)
    write_rows(tmp_path, "b")
    assert fire(job(), cluster).found.run_id == f"{first.found.run_id}-2"


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_later_failed_run_of_the_same_inputs_does_not_hide_the_success(job, cluster, s3_storage, state):
    first = fire(job(), cluster)
    end(run_of(first, s3_storage), "succeeded", "01", cluster)
    end(run_of(submit(job(), cluster, new=True), s3_storage), state, "02", cluster)
    again = fire(job(), cluster)
    assert (again.adopted, again.succeeded, again.found.reference) == (True, True, first.found.reference)
    assert jobs(cluster) == []


def test_a_run_whose_job_is_missing_is_followed_by_another(job, cluster, s3_storage):
    first = fire(job(), cluster)
    run_of(first, s3_storage).store.put(keys.attempt_key(1), b"{}")
    cluster.objects.clear()
    assert fire(job(), cluster).found.run_id == f"{first.found.run_id}-2"


def test_an_interrupted_scheduled_submit_is_completed_by_the_next(job):
    cluster = DyingCluster(after=False)
    with pytest.raises(Died):
        fire(job(), cluster)
    assert fire(job(), cluster).adopted
    assert len(jobs(cluster)) == 1


@pytest.mark.parametrize("option", ["--new", "--key=x"])
def test_if_changed_is_incompatible_with_options_that_always_begin_a_run(tmp_path, option):
    done = cli("submit", tmp_path / "job.yaml", "--if-changed", option)
    assert done.code == 2
    assert option.partition("=")[0] in done.err
