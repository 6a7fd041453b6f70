from pathlib import Path

import pytest

from cpmbee_job.cli.shared.outputs import lines_to, new_folder, require_apart
from cpmbee_job.errors import RefusedError
from cpmbee_job.spec import StorageSpec

STORAGE = StorageSpec()


def test_lines_appear_when_all_are_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    with lines_to(str(path), STORAGE) as write:
        write({"a": "天气"})
        assert not path.exists()
        write([1])
    assert path.read_text(encoding="utf-8") == '{"a": "天气"}\n[1]\n'


def test_lines_without_a_url_go_to_stdout(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    with lines_to(None, STORAGE) as write:
        write({"a": "天"})
    assert capsysbinary.readouterr().out == '{"a": "天"}\n'.encode()


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    with pytest.raises(TypeError), lines_to(str(path), STORAGE) as write:
        write({"no JSON": object()})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("output", "source"),
    [
        ("rows.jsonl", "rows.jsonl"),
        ("./rows.jsonl", "file://{here}/rows.jsonl"),
        ("data/new.jsonl", "data"),
        ("link/rows.jsonl", "data/rows.jsonl"),
        ("s3://b/data/rows.jsonl", "s3://b/data/"),
    ],
)
def test_an_output_that_would_overwrite_the_input_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str | None, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    with pytest.raises(RefusedError, match="would overwrite the input"):
        require_apart(output, source.format(here=Path.cwd()), STORAGE)


@pytest.mark.parametrize("output", [None, "rows.jsonl.out", "s3://b/rows.jsonl"])
def test_an_output_next_to_the_input_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    require_apart(output, "rows.jsonl", STORAGE)


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_appears_when_it_is_complete(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "deep" / "model"
    if exists:
        target.mkdir(parents=True)
    with new_folder(str(target), STORAGE, last="b") as folder:
        (folder / "a").write_text("1")
        assert not (target / "a").exists()
    assert [p.name for p in target.iterdir()] == ["a"]
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(str(tmp_path / "model"), STORAGE, last="b"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(RefusedError), new_folder(str(tmp_path), STORAGE, last="b"):
        pass
    with pytest.raises(RefusedError), new_folder(str(tmp_path / "x"), STORAGE, last="b"):
        pass
