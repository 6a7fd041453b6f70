"""What a process finds out about its container, and the last word that it leaves there."""

import os
from pathlib import Path

import pytest

from cpmbee_job.errors import InvalidError, SpecError
from cpmbee_job.process import contract, pod
from cpmbee_job.spec import StorageSpec


def test_without_a_launcher_there_is_no_contract_to_keep(monkeypatch):
    monkeypatch.delenv(contract.VERSION_ENV, raising=False)
    pod.require_contract()


def test_the_same_contract_will_do(monkeypatch):
    monkeypatch.setenv(contract.VERSION_ENV, str(contract.VERSION))
    pod.require_contract()


@pytest.mark.parametrize(("theirs", "older"), [(contract.VERSION + 1, "image"), (contract.VERSION - 1, "launcher")])
def test_another_contract_is_refused_saying_which_side_is_older(monkeypatch, theirs, older):
    monkeypatch.setenv(contract.VERSION_ENV, str(theirs))
    monkeypatch.setenv(contract.LAUNCHER_ENV, "9.8")
    with pytest.raises(InvalidError, match=rf"the launcher \(cpmbee-job 9\.8\) has {theirs}; the {older} is older"):
        pod.require_contract()


def test_storage_that_is_none_is_said(monkeypatch):
    monkeypatch.setenv(contract.STORAGE_ENV, '{"endpoint": "http://s3"}')
    with pytest.raises(SpecError, match=contract.STORAGE_ENV):
        StorageSpec.from_environment()


def test_what_a_newer_launcher_says_of_storage_is_read_as_far_as_known(monkeypatch):
    monkeypatch.setenv(contract.STORAGE_ENV, '{"region": "eu", "invented": 1}')
    assert StorageSpec.known_from_environment().region == "eu"


def test_a_container_s_share_of_cpus_counts_more_than_the_node_s(monkeypatch):
    monkeypatch.setenv(contract.CPUS_ENV, "1")
    assert pod.num_cpus() == 1


def test_there_is_always_somebody_to_work(monkeypatch):
    monkeypatch.delenv(contract.CPUS_ENV, raising=False)
    assert 1 <= pod.num_cpus() <= (os.cpu_count() or 1)


def test_a_last_word_fits_into_what_kubernetes_keeps(monkeypatch, tmp_path: Path):
    place = tmp_path / "termination-log"
    place.touch()
    monkeypatch.setenv(pod.TERMINATION_LOG_ENV, str(place))
    pod.write_termination_message("x" + "蜂" * 5000)
    assert 4090 < place.stat().st_size <= 4096
    assert place.read_text(encoding="utf-8").startswith("x蜂")


def test_nobody_to_read_it_gets_no_last_word(monkeypatch, tmp_path: Path):
    monkeypatch.setenv(pod.TERMINATION_LOG_ENV, str(tmp_path / "termination-log"))
    pod.write_termination_message("bye")
    assert not list(tmp_path.iterdir())
