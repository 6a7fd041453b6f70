"""The init step of a pod opens or creates its run."""

from pathlib import Path

import pytest

from cpmbee_job.data.__main__ import open_run
from cpmbee_job.errors import NotFoundError
from cpmbee_job.spec import JobSpec, StorageSpec, parse_spec


def spec_below(folder: Path, **changes: object) -> JobSpec:
    text = f"name: a\nmodel: /m\ndata: {{train: /t.jsonl}}\noutput: {folder}\n"
    return parse_spec(text, source="test", overrides=[f"{key}={value}" for key, value in changes.items()])


def test_the_first_pod_creates_the_run_with_the_manifests_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_below(tmp_path)
    monkeypatch.setenv("CPMBEE_SPEC", spec.to_yaml())
    assert open_run(f"{tmp_path}/a/r1", StorageSpec()).spec == spec
    assert (tmp_path / "a" / "r1" / "spec.yaml").read_text() == spec.to_yaml()


def test_an_existing_run_keeps_its_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "r1").mkdir(parents=True)
    (tmp_path / "a" / "r1" / "spec.yaml").write_text(spec_below(tmp_path).to_yaml())
    monkeypatch.setenv("CPMBEE_SPEC", spec_below(tmp_path, **{"train.seed": 7}).to_yaml())
    assert open_run(f"{tmp_path}/a/r1", StorageSpec()).spec == spec_below(tmp_path)


def test_a_missing_run_without_a_spec_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CPMBEE_SPEC", raising=False)
    with pytest.raises(NotFoundError, match="no run there"):
        open_run(f"{tmp_path}/a/r1", StorageSpec())
