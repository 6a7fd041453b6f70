"""Model folders of this machine; those in S3 are in tests/integration/test_s3.py."""

from pathlib import Path

import pytest

from cpmbee_job.errors import NotFoundError
from cpmbee_job.process.contract import default_cache_dir
from cpmbee_job.store.cache import fetch_folder


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}"])
def test_local_folder_is_used_in_place(tmp_path: Path, form: str) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    assert fetch_folder(form.format(tmp_path), cache_dir=tmp_path / "cache") == tmp_path
    assert not (tmp_path / "cache").exists()


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        fetch_folder(str(tmp_path / "absent"))


def test_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"1")
    with pytest.raises(NotFoundError, match="a file, not a folder"):
        fetch_folder(str(tmp_path / "model.bin"))


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with pytest.raises(NotFoundError, match="no files"):
        fetch_folder(str(tmp_path))


def test_default_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CPMBEE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == Path.home() / ".cache" / "cpmbee-job"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "cpmbee-job"
    monkeypatch.setenv("CPMBEE_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
