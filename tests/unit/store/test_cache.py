"""Local model folders; tests/integration/test_cache.py tests folders in S3."""

from pathlib import Path

import pytest

from cpmbee_job.errors import NotFoundError
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
