import gzip
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cpmbee_job.data.dataset.index import INDEX
from cpmbee_job.data.dataset.shards import PackedDataset, read_index
from cpmbee_job.data.encode.encoder import answer_order
from cpmbee_job.data.prepare.prepare import PrepareSettings, prepare, prepare_split, prepared_digest, preprocess
from cpmbee_job.data.read.sources import open_source, read_source
from cpmbee_job.errors import DataError
from cpmbee_job.store.files import FileStore

ROWS = PrepareSettings(max_length=64)


def _example(number):
    return {"input": f"row {number} " + "今天" * (number % 11), "<ans>": {"a": str(number), "b": "x", "c": "好"}}


@pytest.fixture
def vocab(tiny_vocab):
    return tiny_vocab.read_bytes()


@pytest.fixture
def train(tmp_path) -> Path:
    return _write(tmp_path / "data" / "train.jsonl", map(_example, range(200)))


def _write(path: Path, rows) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _source(path):
    return open_source(str(path), piece_bytes=3000)


def _store(tmp_path, name="out"):
    return FileStore(str(tmp_path / name))


def _files(store):
    return {info.key: info.etag for info in store.list()}


def test_parts_and_the_index_over_them(tmp_path, train, vocab):
    store, source = _store(tmp_path), _source(train)
    index = prepare(source, vocab, ROWS, store)
    assert len(index.parts) == len(source.pieces) > 3
    assert index.examples == 200
    assert index.tokens <= index.capacity
    assert read_index(store) == index
    assert PackedDataset.open(store).num_rows == index.rows
    assert index.target_tokens == sum(part.target_tokens for part in index.parts) > 200


def test_a_rerun_changes_nothing(tmp_path, train, vocab):
    store = _store(tmp_path)
    index = prepare(_source(train), vocab, ROWS, store)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert prepare(_source(train), vocab, ROWS, store) == index
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_processes_and_pods_write_the_same_bytes(tmp_path, train, vocab):
    alone, shared = _store(tmp_path, "alone"), _store(tmp_path, "shared")
    prepare(_source(train), vocab, ROWS, alone)
    prepare(_source(train), vocab, ROWS, shared, workers=2, pod_index=1, num_pods=3)
    assert _files(alone) == _files(shared)


def test_several_at_once_make_one_data_set(tmp_path, train, vocab):
    alone, shared = _store(tmp_path, "alone"), _store(tmp_path, "shared")
    with ThreadPoolExecutor(3) as pods:
        found = list(
            pods.map(lambda pod: prepare(_source(train), vocab, ROWS, shared, pod_index=pod, num_pods=3), range(3))
        )
    assert found == [prepare(_source(train), vocab, ROWS, alone)] * 3
    assert _files(alone) == _files(shared)


def test_what_is_done_already_is_left_alone(tmp_path, train, vocab):
    store = _store(tmp_path)
    index = prepare(_source(train), vocab, ROWS, store)
    for key in (INDEX, "part-00002.json", "part-00003.arrow", "part-00003.json"):
        store.delete(key)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert prepare(_source(train), vocab, ROWS, store) == index
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed == {INDEX, "part-00002.json", "part-00002.arrow", "part-00003.json", "part-00003.arrow"}


_SLOW = """
import sys, time
from pathlib import Path
from cpmbee_job.data.prepare import prepare
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.store.files import FileStore
if __name__ == "__main__":
    path, vocab, out = sys.argv[1:]
    settings = prepare.PrepareSettings(max_length=64, format="slow_format:slowly")
    prepare.prepare(open_source(path, piece_bytes=3000), Path(vocab).read_bytes(), settings, FileStore(out), workers=2)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_half_way_the_next_run_completes_it(tmp_path, train, vocab, tiny_vocab, how):
    (tmp_path / "slow_format.py").write_text("import time\ndef slowly(row):\n    time.sleep(0.004)\n    return row\n")
    (tmp_path / "slow.py").write_text(_SLOW)
    command = [sys.executable, "slow.py", str(train), str(tiny_vocab), str(tmp_path / "out")]
    search_path = os.pathsep.join([*sys.path, str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": search_path, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    _wait_for(lambda: list((tmp_path / "out").glob("part-*.json")))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(how)
    process.wait()
    _wait_for(lambda: not any(Path(f"/proc/{child}/cmdline").exists() for child in children))
    assert not (tmp_path / "out" / INDEX).exists()

    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    undisturbed = prepare(_source(train), vocab, ROWS, _store(tmp_path, "undisturbed"))
    assert read_index(_store(tmp_path)).content_digest == undisturbed.content_digest


def _wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_compressed_input_is_packed_in_windows(tmp_path, train, vocab):
    plain = prepare(_source(train), vocab, ROWS, _store(tmp_path, "plain"))
    compressed = tmp_path / "train.jsonl.gz"
    compressed.write_bytes(gzip.compress(train.read_bytes()))
    index = prepare(_source(compressed), vocab, ROWS, _store(tmp_path))
    assert len(index.parts) == 1
    assert (index.examples, index.tokens) == (plain.examples, plain.tokens)
    dataset = PackedDataset.open(_store(tmp_path))
    table = dataset.table(np.arange(dataset.num_rows))
    assert np.bincount(table.rows, weights=table.sample_lengths).max() <= 64
    assert table.rows.size == 200


def test_bad_rows_are_named_by_file_line_and_reason(tmp_path, vocab):
    path = _write(tmp_path / "train.jsonl", [_example(0), {"input": "x"}, _example(2), {"<ans>": ["y"]}])
    with pytest.raises(DataError) as caught:
        prepare(_source(path), vocab, ROWS, _store(tmp_path))
    assert f"{path}:2: the key <ans> is missing" in str(caught.value)
    assert f"{path}:4: <ans>: a list" in str(caught.value)
    assert not _files(_store(tmp_path))


def test_bad_rows_in_several_processes(tmp_path, vocab):
    rows = [_example(number) for number in range(200)]
    rows[150] = {"input": "x"}
    path = _write(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError, match=rf"{path}:151: "):
        prepare(_source(path), vocab, ROWS, _store(tmp_path), workers=2)
    assert INDEX not in _files(_store(tmp_path))


def test_rows_that_are_left_out_are_counted_by_reason(tmp_path, vocab):
    long = {"input": "今天" * 80, "<ans>": "x"}
    path = _write(
        tmp_path / "train.jsonl", [_example(0), {"input": "x"}, [], long, {"input": "<", "n": 1, "<ans>": ""}]
    )
    index = prepare(_source(path), vocab, PrepareSettings(64, on_error="skip", too_long="skip"), _store(tmp_path))
    assert index.skipped == {"no example": 1, "too long": 1, "unreadable": 1}
    assert index.warnings == {"'<' taken as text": 1, "a number taken as text": 1}
    assert index.examples == 2


def test_a_row_that_is_too_long_is_named(tmp_path, vocab):
    path = _write(tmp_path / "train.jsonl", [_example(0), {"input": "今天" * 80, "<ans>": "x"}])
    with pytest.raises(DataError, match=rf"{path}:2: \d+ tokens, where a row holds 64(.|\n)*too_long to skip"):
        prepare(_source(path), vocab, PrepareSettings(64, on_error="skip"), _store(tmp_path))


def test_data_without_an_example_are_refused(tmp_path, vocab):
    path = _write(tmp_path / "train.jsonl", [{"input": "x"}, {"input": "y"}])
    with pytest.raises(DataError, match="no examples there; left out: 2 no example"):
        prepare(_source(path), vocab, PrepareSettings(64, on_error="skip"), _store(tmp_path))
    assert INDEX not in _files(_store(tmp_path))


def test_an_empty_file_is_refused(tmp_path, vocab):
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(DataError, match="no examples there"):
        prepare(_source(tmp_path / "train.jsonl"), vocab, ROWS, _store(tmp_path))


def test_the_folder_is_named_by_all_that_decides_its_content(train, vocab):
    def digest(source=None, vocab=vocab, settings=ROWS):
        return prepared_digest(source or _source(train), vocab, settings)

    known = {digest()}
    assert digest() in known
    others = [
        digest(open_source(str(train), piece_bytes=100)),
        digest(vocab=vocab + b"more\n"),
        digest(settings=PrepareSettings(max_length=128)),
        digest(settings=PrepareSettings(max_length=64, format="ccpm")),
        digest(_source(_write(train, [_example(1)]))),
    ]
    assert len({*known, *others}) == 6


def test_a_format_of_the_user_s_own_counts_by_its_code(tmp_path, train, vocab, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    settings = PrepareSettings(max_length=64, format="own_format:convert")
    (tmp_path / "own_format.py").write_text("def convert(row):\n    return row\n")
    before = prepared_digest(_source(train), vocab, settings)
    assert prepared_digest(_source(train), vocab, settings) == before
    (tmp_path / "own_format.py").write_text("def convert(row):\n    return {**row, 'more': 'x'}\n")
    assert prepared_digest(_source(train), vocab, settings) != before


def test_a_split_finds_its_folder(tmp_path, train, vocab):
    folder, index = prepare_split(str(train), vocab, ROWS, str(tmp_path / "runs"))
    assert folder == f"{tmp_path}/runs/prepared/{index.digest}"
    assert PackedDataset.open(FileStore(folder)).num_rows == index.rows


def test_progress_ends_with_everything(tmp_path, train, vocab):
    calls = []
    prepare(_source(train), vocab, ROWS, _store(tmp_path), progress=lambda *numbers: calls.append(numbers))
    assert calls[-1] == (200, train.stat().st_size, train.stat().st_size)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_keys_of_an_answer_are_shuffled_by_the_example_itself():
    answers = [answer_order(_example(number)).sample(range(3), 3) for number in range(30)]
    assert answers == [answer_order(_example(number)).sample(range(3), 3) for number in range(30)]
    assert len({tuple(answer) for answer in answers}) == 6
    assert answer_order({"<ans>": "x"}) is None


def test_preprocess_writes_a_folder_for_each_file(tmp_path, vocab):
    _write(tmp_path / "bee" / "train.jsonl", map(_example, range(20)))
    _write(tmp_path / "bee" / "eval.jsonl", map(_example, range(20, 25)))
    indexes = preprocess(str(tmp_path / "bee"), str(tmp_path / "bin"), "ccpm_data", vocab)
    assert set(indexes) == {f"{tmp_path}/bin/train", f"{tmp_path}/bin/eval"}
    assert (tmp_path / "bin" / "train" / "ccpm_data-00000.arrow").exists()
    assert indexes[f"{tmp_path}/bin/train"].tokens > 20
    records = list(read_source(str(tmp_path / "bin" / "eval")))
    assert [record.content for record in records] == [_example(number) for number in range(20, 25)]
    assert records[1].location == f"{tmp_path}/bin/eval/ccpm_data-00000.arrow:2"


def test_preprocess_without_a_vocabulary(tmp_path, train):
    (index,) = preprocess(str(train.parent), str(tmp_path / "bin"), "data").values()
    assert (index.examples, index.tokens) == (200, 0)


def test_preprocess_again_is_nothing_and_with_other_rows_anew(tmp_path, train, vocab):
    def run():
        return preprocess(str(train.parent), str(tmp_path / "bin"), "data", vocab)[f"{tmp_path}/bin/train"]

    index = run()
    before = _files(FileStore(f"{tmp_path}/bin/train"))
    assert run() == index
    assert _files(FileStore(f"{tmp_path}/bin/train")) == before
    _write(train, [_example(1)])
    assert run().examples == 1
    assert [record.content for record in read_source(f"{tmp_path}/bin/train")] == [_example(1)]


def test_preprocessed_data_are_prepared_like_the_rows_themselves(tmp_path, train, vocab):
    preprocess(str(train.parent), str(tmp_path / "bin"), "data", vocab)
    rows = prepare(open_source(str(train)), vocab, ROWS, _store(tmp_path, "rows"))
    again = prepare(open_source(f"{tmp_path}/bin/train"), vocab, ROWS, _store(tmp_path, "again"))
    assert again.content_digest == rows.content_digest


def test_prepared_rows_are_no_input(tmp_path, train, vocab):
    prepare(_source(train), vocab, ROWS, _store(tmp_path))
    with pytest.raises(DataError, match="already encoded and packed"):
        open_source(str(tmp_path / "out"))


def test_a_folder_of_data_sets_asks_for_one_of_them(tmp_path, train):
    preprocess(str(train.parent), str(tmp_path / "bin"), "data")
    with pytest.raises(DataError, match="name one of them: train"):
        open_source(str(tmp_path / "bin"))


def test_two_files_for_one_folder(tmp_path, train):
    (train.parent / "train.json").write_bytes(train.read_bytes())
    with pytest.raises(DataError, match=r"several files would become .*/bin/train/"):
        preprocess(str(train.parent), str(tmp_path / "bin"), "data")


def test_data_of_another_release_are_made_anew(tmp_path, train, vocab):
    store = _store(tmp_path)
    index = prepare(_source(train), vocab, ROWS, store)
    store.put(INDEX, json.dumps({**json.loads(store.get(INDEX)), "version": 0}).encode())
    assert prepare(_source(train), vocab, ROWS, store) == index
    assert read_index(store) == index


def test_a_file_of_the_user_s_is_not_taken_for_an_index(tmp_path, train, vocab):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / INDEX).write_text('{"mine": 1}')
    with pytest.raises(DataError, match=r"out/index\.json: not an index"):
        prepare(_source(train), vocab, ROWS, _store(tmp_path))
    assert (tmp_path / "out" / INDEX).read_text() == '{"mine": 1}'


def test_what_is_too_long_can_be_cut_and_is_counted(tmp_path, vocab):
    path = _write(tmp_path / "train.jsonl", [_example(0), {"input": "今天" * 80, "<ans>": "好"}])
    index = prepare(_source(path), vocab, replace(ROWS, too_long="truncate-context"), _store(tmp_path))
    assert (index.examples, index.warnings) == (2, {"texts cut to fit into a row": 1})
    table = PackedDataset.open(_store(tmp_path)).table(np.arange(index.rows))
    assert 64 in table.sample_lengths.tolist()


def test_what_is_too_long_without_its_texts_is_an_error(tmp_path, vocab):
    path = _write(tmp_path / "train.jsonl", [_example(0), {"input": "x", "<ans>": "好" * 80}])
    with pytest.raises(DataError, match=rf"{path}:2: \d+ tokens(.|\n)*its keys and its answer alone are too long"):
        prepare(_source(path), vocab, replace(ROWS, too_long="truncate-context"), _store(tmp_path))
