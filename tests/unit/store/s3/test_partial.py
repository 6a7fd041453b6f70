"""What a partial file keeps after an interruption, and when it is discarded."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cpmbee_job.errors import DiskError, StoreError
from cpmbee_job.store.files import TEMPORARY, FileStore
from cpmbee_job.store.s3.partial import PartialFile, partial_file

CONTENT = bytes(range(250))
RANGES = [range(0, 100), range(100, 200), range(200, 250)]


class LostConnectionError(Exception):
    """Such as a lost connection."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "model.bin"


def opened(path: Path, identity: str = "origin 1", size: int = 250, range_size: int = 100):
    return partial_file(path, identity, size, range_size)


def fill(partial, *numbers: int) -> None:
    for number in numbers:
        wanted = RANGES[number]
        partial.write(number, 0, CONTENT[wanted.start : wanted.start + 10])
        partial.write(number, 10, CONTENT[wanted.start + 10 : wanted.stop])
        partial.mark_complete(number)


def interrupt(path: Path, *numbers: int, then: Callable[[PartialFile], object] = lambda _: None) -> None:
    """Make a call that fails after these ranges."""

    def call() -> None:
        with opened(path) as partial:
            fill(partial, *numbers)
            then(partial)
            raise LostConnectionError

    with pytest.raises(LostConnectionError):
        call()


def beside(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir() if entry != path]


def test_all_ranges_make_the_file(path: Path) -> None:
    with opened(path) as partial:
        assert partial.ranges == RANGES
        assert partial.complete == set()
        fill(partial, 2, 0, 1)
        assert b"".join(partial.read(0)) == CONTENT[:100]
        assert not path.exists()
    assert path.read_bytes() == CONTENT
    assert beside(path) == []


def test_empty_file(path: Path) -> None:
    with opened(path, size=0) as partial:
        assert partial.ranges == []
    assert path.read_bytes() == b""


def test_next_call_continues(path: Path) -> None:
    interrupt(path, 0, 2)
    with opened(path) as partial:
        assert partial.complete == {0, 2}
        fill(partial, 1)
    assert path.read_bytes() == CONTENT
    assert beside(path) == []


def test_incomplete_range_is_missing(path: Path) -> None:
    interrupt(path, 0, then=lambda partial: partial.write(1, 0, CONTENT[100:200]))
    with opened(path) as partial:
        assert partial.complete == {0}
        fill(partial, 1, 2)


@pytest.mark.parametrize("other", [{"identity": "origin 2"}, {"size": 251}, {"range_size": 99}])
def test_another_origin_starts_over(path: Path, other: dict) -> None:
    interrupt(path, 0, 1)
    with opened(path, **other) as partial:
        assert partial.complete == set()
        assert b"".join(partial.read(0)) == bytes(len(partial.ranges[0]))


@pytest.mark.parametrize("length", [0, 100, 250, 253, 284])
def test_truncated_record_is_discarded(path: Path, length: int) -> None:
    interrupt(path, 0, 1)
    (name,) = beside(path)
    os.truncate(path.with_name(name), length)
    with opened(path) as partial:
        assert partial.complete == set()


def test_no_file_remains_without_complete_ranges(path: Path) -> None:
    interrupt(path)
    assert beside(path) == []


def test_no_file_remains_of_discarded_content(path: Path) -> None:
    interrupt(path, 0, 1, 2, then=PartialFile.discard)
    assert beside(path) == []


def test_failed_disk_keeps_nothing(path: Path) -> None:
    with pytest.raises(DiskError, match=r"model\.bin"):
        interrupt(path, 0, then=lambda _: Path("/dev/full").write_bytes(b"1"))
    assert beside(path) == []


def test_old_file_stays_until_the_new_one_is_complete(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"old")
    interrupt(path, 0)
    assert path.read_bytes() == b"old"


def test_concurrent_calls_use_separate_files(path: Path) -> None:
    with opened(path) as first:
        fill(first, 0)
        with opened(path) as second:
            assert second.complete == set()
            fill(second, 0, 1, 2)
        assert path.read_bytes() == CONTENT
        fill(first, 1, 2)
    assert path.read_bytes() == CONTENT
    assert beside(path) == []


def test_second_concurrent_call_leaves_no_file(path: Path) -> None:
    with opened(path) as first:
        fill(first, 0)
        interrupt(path, 0, 1)
        assert len(beside(path)) == 1
        fill(first, 1, 2)


def test_files_with_long_names_are_not_confused(path: Path) -> None:
    one, other = path.with_name("长" * 70 + "1"), path.with_name("长" * 70 + "2")
    interrupt(one, 0, 1)
    with opened(other) as partial:
        assert partial.complete == set()


def test_symlink_is_not_followed(path: Path, tmp_path: Path) -> None:
    interrupt(path, 0)
    (name,) = beside(path)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.with_name(name).unlink()
    path.with_name(name).symlink_to(victim)
    with opened(path) as partial:
        fill(partial, 0, 1, 2)
    assert victim.read_bytes() == b"precious"


def test_partial_file_is_not_an_object(path: Path) -> None:
    interrupt(path, 0)
    assert beside(path)[0].endswith(TEMPORARY)
    assert list(FileStore(str(path.parent)).list()) == []


def test_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="not a regular file"), opened(tmp_path / "pipe"):
        pass
