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
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.prepare import Preparation, prepare, prepare_below
from cpmbee_job.data.prepare.shard_maker import PrepareSettings
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.errors import DataError
from cpmbee_job.store.files import FileStore
from tests.conftest import TINY_VOCAB

PACKED = PrepareSettings(max_length=64)


def _example(number):
    return {"input": f"row {number} " + "今天" * (number % 11), "<ans>": {"a": str(number), "b": "x", "c": "好"}}


@pytest.fixture
def tokenizer(tiny_vocab):
    return Tokenizer.from_file(tiny_vocab)


@pytest.fixture
def train(tmp_path) -> Path:
    return _write(tmp_path / "data" / "train.jsonl", map(_example, range(200)))


def _write(path: Path, records) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def _source(path):
    return open_source(str(path), piece_bytes=3000)


def _store(tmp_path, name="out"):
    return FileStore(str(tmp_path / name))


def _files(store):
    return {info.key: info.etag for info in store.list()}


def test_shards_and_their_index(tmp_path, train, tokenizer):
    store, source = _store(tmp_path), _source(train)
    index = prepare(Preparation(source, PACKED, tokenizer), store)
    assert len(index.parts) == len(source.pieces) > 3
    assert index.examples == 200
    assert index.tokens <= index.capacity
    assert read_index(store) == index
    assert PackedDataset.open(store).num_rows == index.rows
    assert index.target_tokens == sum(part.target_tokens for part in index.parts) > 200


def test_a_rerun_changes_nothing(tmp_path, train, tokenizer):
    store = _store(tmp_path)
    index = prepare(Preparation(_source(train), PACKED, tokenizer), store)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert prepare(Preparation(_source(train), PACKED, tokenizer), store) == index
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_processes_and_pods_write_the_same_bytes(tmp_path, train, tokenizer):
    alone, shared = _store(tmp_path, "alone"), _store(tmp_path, "shared")
    prepare(Preparation(_source(train), PACKED, tokenizer), alone)
    prepare(Preparation(_source(train), PACKED, tokenizer, workers=2, pod_index=1, num_pods=3), shared)
    assert _files(alone) == _files(shared)


def test_concurrent_pods_prepare_one_dataset(tmp_path, train, tokenizer):
    alone, shared = _store(tmp_path, "alone"), _store(tmp_path, "shared")
    with ThreadPoolExecutor(3) as pods:
        found = list(
            pods.map(
                lambda pod: prepare(Preparation(_source(train), PACKED, tokenizer, pod_index=pod, num_pods=3), shared),
                range(3),
            )
        )
    assert found == [prepare(Preparation(_source(train), PACKED, tokenizer), alone)] * 3
    assert _files(alone) == _files(shared)


def test_complete_shards_are_not_made_again(tmp_path, train, tokenizer):
    store = _store(tmp_path)
    index = prepare(Preparation(_source(train), PACKED, tokenizer), store)
    for key in (INDEX, "part-00002.json", "part-00003.arrow", "part-00003.json"):
        store.delete(key)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert prepare(Preparation(_source(train), PACKED, tokenizer), store) == index
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed == {INDEX, "part-00002.json", "part-00002.arrow", "part-00003.json", "part-00003.arrow"}


_SLOW = """
import sys, time
from pathlib import Path
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.prepare.prepare import Preparation, prepare
from cpmbee_job.data.prepare.shard_maker import PrepareSettings
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.store.files import FileStore
if __name__ == "__main__":
    path, vocab, out = sys.argv[1:]
    settings = PrepareSettings(max_length=64, format="slow_format:slowly")
    source, tokenizer = open_source(path, piece_bytes=3000), Tokenizer.from_file(vocab)
    prepare(Preparation(source, settings, tokenizer, workers=2), FileStore(out))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_run_completes_what_a_killed_one_left(tmp_path, train, tokenizer, tiny_vocab, how):
    (tmp_path / "slow_format.py").write_text("import time\ndef slowly(one):\n    time.sleep(0.004)\n    return one\n")
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
    undisturbed = prepare(Preparation(_source(train), PACKED, tokenizer), _store(tmp_path, "undisturbed"))
    assert read_index(_store(tmp_path)).content_digest == undisturbed.content_digest


def _wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_compressed_input_is_packed_in_windows(tmp_path, train, tokenizer):
    plain = prepare(Preparation(_source(train), PACKED, tokenizer), _store(tmp_path, "plain"))
    compressed = tmp_path / "train.jsonl.gz"
    compressed.write_bytes(gzip.compress(train.read_bytes()))
    index = prepare(Preparation(_source(compressed), PACKED, tokenizer), _store(tmp_path))
    assert len(index.parts) == 1
    assert (index.examples, index.tokens) == (plain.examples, plain.tokens)
    dataset = PackedDataset.open(_store(tmp_path))
    table = dataset.table(np.arange(dataset.num_rows))
    assert np.bincount(table.rows, weights=table.sample_lengths).max() <= 64
    assert table.rows.size == 200


def test_invalid_records_are_named_by_file_line_and_reason(tmp_path, tokenizer):
    path = _write(tmp_path / "train.jsonl", [_example(0), {"input": "x"}, _example(2), {"<ans>": ["y"]}])
    with pytest.raises(DataError) as caught:
        prepare(Preparation(_source(path), PACKED, tokenizer), _store(tmp_path))
    assert f"{path}:2: the key <ans> is missing" in str(caught.value)
    assert f"{path}:4: <ans>: must be text or an object, not a list" in str(caught.value)
    assert not _files(_store(tmp_path))


def test_invalid_records_in_several_processes(tmp_path, tokenizer):
    records = [_example(number) for number in range(200)]
    records[150] = {"input": "x"}
    path = _write(tmp_path / "train.jsonl", records)
    with pytest.raises(DataError, match=rf"{path}:151: "):
        prepare(Preparation(_source(path), PACKED, tokenizer, workers=2), _store(tmp_path))
    assert INDEX not in _files(_store(tmp_path))


def test_skipped_records_are_counted_by_reason(tmp_path, tokenizer):
    long = {"input": "今天" * 80, "<ans>": "x"}
    path = _write(
        tmp_path / "train.jsonl", [_example(0), {"input": "x"}, [], long, {"input": "<", "n": 1, "<ans>": ""}]
    )
    index = prepare(
        Preparation(_source(path), PrepareSettings(64, on_error="skip", too_long="skip"), tokenizer), _store(tmp_path)
    )
    assert index.skipped == {"no example": 1, "too long": 1, "unreadable": 1}
    assert index.warnings == {"'<' taken as text": 1, "a number taken as text": 1}
    assert index.examples == 2


def test_an_example_that_is_too_long_is_named(tmp_path, tokenizer):
    path = _write(tmp_path / "train.jsonl", [_example(0), {"input": "今天" * 80, "<ans>": "x"}])
    with pytest.raises(DataError, match=rf"{path}:2: \d+ tokens, but a packed row holds 64(.|\n)*too_long to skip"):
        prepare(Preparation(_source(path), PrepareSettings(64, on_error="skip"), tokenizer), _store(tmp_path))


def test_data_without_examples_is_rejected(tmp_path, tokenizer):
    path = _write(tmp_path / "train.jsonl", [{"input": "x"}, {"input": "y"}])
    with pytest.raises(DataError, match="no examples; skipped: 2 no example"):
        prepare(Preparation(_source(path), PrepareSettings(64, on_error="skip"), tokenizer), _store(tmp_path))
    assert INDEX not in _files(_store(tmp_path))


def test_an_empty_file_is_rejected(tmp_path, tokenizer):
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(DataError, match="no examples"):
        prepare(Preparation(_source(tmp_path / "train.jsonl"), PACKED, tokenizer), _store(tmp_path))


def test_the_digest_covers_everything_that_decides_the_content(train, tokenizer):
    def digest(source=None, tokenizer=tokenizer, settings=PACKED):
        return Preparation(source or _source(train), settings, tokenizer).digest

    known = {digest()}
    assert digest() in known
    others = [
        digest(open_source(str(train), piece_bytes=100)),
        digest(tokenizer=Tokenizer.from_bytes("\n".join([*TINY_VOCAB, "more"]).encode())),
        digest(settings=PrepareSettings(max_length=128)),
        digest(settings=PrepareSettings(max_length=64, format="ccpm")),
        digest(_source(_write(train, [_example(1)]))),
    ]
    assert len({*known, *others}) == 6


def test_the_code_of_a_users_format_is_part_of_the_digest(tmp_path, train, tokenizer, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    settings = PrepareSettings(max_length=64, format="own_format:convert")
    (tmp_path / "own_format.py").write_text("def convert(record):\n    return record\n")
    before = Preparation(_source(train), settings, tokenizer).digest
    assert Preparation(_source(train), settings, tokenizer).digest == before
    (tmp_path / "own_format.py").write_text("def convert(record):\n    return {**record, 'more': 'x'}\n")
    assert Preparation(_source(train), settings, tokenizer).digest != before


def test_a_dataset_is_prepared_in_the_folder_of_its_digest(tmp_path, train, tokenizer):
    folder, index = prepare_below(Preparation(open_source(str(train)), PACKED, tokenizer), str(tmp_path / "runs"))
    assert folder == f"{tmp_path}/runs/prepared/{index.digest}"
    assert PackedDataset.open(FileStore(folder)).num_rows == index.rows


def test_progress_ends_at_the_total(tmp_path, train, tokenizer):
    calls = []
    prepare(
        Preparation(_source(train), PACKED, tokenizer, progress=lambda *numbers: calls.append(numbers)),
        _store(tmp_path),
    )
    assert calls[-1] == (200, train.stat().st_size, train.stat().st_size)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_keys_of_an_answer_are_shuffled_by_the_example_itself():
    answers = [answer_order(_example(number)).sample(range(3), 3) for number in range(30)]
    assert answers == [answer_order(_example(number)).sample(range(3), 3) for number in range(30)]
    assert len({tuple(answer) for answer in answers}) == 6
    assert answer_order({"<ans>": "x"}) is None


def test_data_of_another_release_is_prepared_again(tmp_path, train, tokenizer):
    store = _store(tmp_path)
    index = prepare(Preparation(_source(train), PACKED, tokenizer), store)
    store.put(INDEX, json.dumps({**json.loads(store.get(INDEX)), "version": 0}).encode())
    assert prepare(Preparation(_source(train), PACKED, tokenizer), store) == index
    assert read_index(store) == index


def test_a_users_file_is_not_overwritten_as_an_index(tmp_path, train, tokenizer):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / INDEX).write_text('{"mine": 1}')
    with pytest.raises(DataError, match=r"out/index\.json: not an index"):
        prepare(Preparation(_source(train), PACKED, tokenizer), _store(tmp_path))
    assert (tmp_path / "out" / INDEX).read_text() == '{"mine": 1}'


def test_truncated_examples_are_counted(tmp_path, tokenizer):
    path = _write(tmp_path / "train.jsonl", [_example(0), {"input": "今天" * 80, "<ans>": "好"}])
    index = prepare(
        Preparation(_source(path), replace(PACKED, too_long="truncate-context"), tokenizer), _store(tmp_path)
    )
    assert (index.examples, index.warnings) == (2, {"texts cut to fit into a row": 1})
    table = PackedDataset.open(_store(tmp_path)).table(np.arange(index.rows))
    assert 64 in table.sample_lengths.tolist()


def test_an_example_that_truncation_cannot_shorten_is_an_error(tmp_path, tokenizer):
    path = _write(tmp_path / "train.jsonl", [_example(0), {"input": "x", "<ans>": "好" * 80}])
    with pytest.raises(DataError, match=rf"{path}:2: \d+ tokens(.|\n)*its keys and its answer alone are too long"):
        prepare(Preparation(_source(path), replace(PACKED, too_long="truncate-context"), tokenizer), _store(tmp_path))


def test_packed_rows_are_rejected_as_input(tmp_path, train, tokenizer):
    prepare(Preparation(_source(train), PACKED, tokenizer), _store(tmp_path))
    with pytest.raises(DataError, match="already encoded and packed"):
        open_source(str(tmp_path / "out"))
