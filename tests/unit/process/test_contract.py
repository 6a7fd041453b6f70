from pathlib import Path

import pytest

from cpmbee_job.process.contract import default_cache_dir


def test_default_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CPMBEE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == Path.home() / ".cache" / "cpmbee-job"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "cpmbee-job"
    monkeypatch.setenv("CPMBEE_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
