import pytest

from cpmbee_job.data.read.reader import read_source
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.errors import DataError, NotFoundError

LINE = b'{"input": "row", "<ans>": "1"}\n'


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    for name in ("b.jsonl", "a/c.jsonl", "part-00000", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINE)
    for name in ("README.md", "_SUCCESS", ".hidden.jsonl"):
        (tmp_path / name).write_text("no data")
    source = open_source(str(tmp_path))
    assert [info.key for info in source.listing] == ["a/c.jsonl", "b.jsonl", "d.txt", "part-00000"]
    assert source.ignored == ("README.md",)
    assert len(list(read_source(str(tmp_path)))) == 4


def test_the_pieces_depend_only_on_the_listing(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(LINE * 1000)
    sources = [open_source(str(tmp_path), piece_bytes=10_000) for _ in range(2)]
    assert sources[0].pieces == sources[1].pieces
    assert len(sources[0].pieces) > 3


def test_a_missing_url_is_an_error(tmp_path):
    with pytest.raises(NotFoundError):
        open_source(str(tmp_path / "nothing.jsonl"))


def test_a_folder_without_data(tmp_path):
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"no data files, only table.csv(.|\n)*\.jsonl"):
        open_source(str(tmp_path))
