"""The limits of a container, and its termination message."""

import os
from pathlib import Path

import pytest

from cpmbee_job.errors import InvalidError
from cpmbee_job.process import contract, pod


def test_contract_is_not_checked_without_a_launcher(monkeypatch):
    monkeypatch.delenv(contract.VERSION_ENV, raising=False)
    pod.require_contract()


def test_same_contract_is_accepted(monkeypatch):
    monkeypatch.setenv(contract.VERSION_ENV, str(contract.VERSION))
    pod.require_contract()


@pytest.mark.parametrize(("theirs", "older"), [(contract.VERSION + 1, "image"), (contract.VERSION - 1, "launcher")])
def test_other_contract_is_an_error_that_names_the_older_side(monkeypatch, theirs, older):
    monkeypatch.setenv(contract.VERSION_ENV, str(theirs))
    monkeypatch.setenv(contract.LAUNCHER_ENV, "9.8")
    with pytest.raises(InvalidError, match=rf"the launcher \(cpmbee-job 9\.8\) has {theirs}; the {older} is older"):
        pod.require_contract()


def test_cpu_limit_of_the_container_counts(monkeypatch):
    monkeypatch.setenv(contract.CPUS_ENV, "1")
    assert pod.num_cpus() == 1


def test_there_is_at_least_one_cpu(monkeypatch):
    monkeypatch.delenv(contract.CPUS_ENV, raising=False)
    assert 1 <= pod.num_cpus() <= (os.cpu_count() or 1)


def test_termination_message_is_truncated_to_what_kubernetes_keeps(monkeypatch, tmp_path: Path):
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setenv(pod.TERMINATION_LOG_ENV, str(path))
    pod.write_termination_message("x" + "蜂" * 5000)
    assert 4090 < path.stat().st_size <= 4096
    assert path.read_text(encoding="utf-8").startswith("x蜂")


def test_no_termination_message_outside_a_pod(monkeypatch, tmp_path: Path):
    monkeypatch.setenv(pod.TERMINATION_LOG_ENV, str(tmp_path / "termination-log"))
    pod.write_termination_message("bye")
    assert not list(tmp_path.iterdir())
