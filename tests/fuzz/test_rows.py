"""Any line of data gives an encodable example, or an error with file, line and position."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpmbee_job.data.encode.encoder import answer_order, encode_example
from cpmbee_job.data.encode.tokenizer import Tokenizer
from cpmbee_job.data.read.reader import Reader, Rejection
from cpmbee_job.data.read.sources import open_source
from cpmbee_job.errors import DataError
from tests.fuzz.fuzzing import corpus, damaged, damaged_json, examples

ROWS: list[Any] = [
    {"input": "今天<mask_0>天气", "options": {"<option_0>": "好", "<option_1>": "a<<b"}, "<ans>": {"<mask_0>": "很"}},
    {"input": "x", "n": 1.50, "<ans>": ""},
    {"input": "[翻译]a[0]b[1]c[2]d[3]e[答案]", "target": "1"},
]
PIECES = [b"<", b">", b"<<", b"<ans>", b'"<ans>":', b"\\ud83d", b"\xf0\x9f", b"NaN", b"-0", b"1E5", b"[" * 1200,
                   b'{"a":1,"a":2}', b'{"a":' * 980, b"\xef\xbb\xbf", b"\x00", b"\r", b"9" * 4400]  # fmt: skip
LINES = damaged([json.dumps(row, ensure_ascii=False).encode() for row in ROWS], PIECES) | damaged_json(ROWS)
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["<mask_0>", "a<b", "<<", "今天天气", "<unk>", "</s>", "<option_9>", "\x85"]
)
EXAMPLES = st.recursive(TEXTS, lambda inner: st.dictionaries(TEXTS, inner, min_size=1, max_size=3), max_leaves=6)


@pytest.fixture(scope="module")
def tokenizer(tiny_vocab: Path) -> Tokenizer:
    return Tokenizer.from_file(tiny_vocab)


def read(folder: Path, lines: list[bytes], tokenizer: Tokenizer, format_name: str = "bee") -> None:
    path = folder / "rows.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + b'{"<ans>": ""}\n')
    source = open_source(str(path))
    warnings: Counter[str] = Counter()
    for piece in source.pieces:
        for record in Reader(source.store, source.kind, format_name).read(piece, warnings):
            place, _, line = str(record.location).rpartition(":")
            assert place == str(path)
            assert int(line) >= 1
            if isinstance(record.content, Rejection):
                assert record.content.error.message
            else:
                encode(record.content, tokenizer)


def encode(example: Any, tokenizer: Tokenizer) -> None:
    encoded = encode_example(tokenizer, example, answer_order=answer_order(example))
    size = encoded.input_ids.size
    assert encoded.input_id_subs.size == encoded.context.size == encoded.segment_ids.size == size
    assert encoded.segment_rel.size == encoded.num_segments**2
    assert 0 <= encoded.input_ids.min() <= encoded.input_ids.max() < tokenizer.vocab_size
    try:
        encode_example(tokenizer, example, strict=True)
    except DataError as error:
        assert error.message  # noqa: PT017


@pytest.mark.parametrize("line", corpus("rows"))
@pytest.mark.parametrize("format_name", ["bee", "ccpm"])
def test_known_lines(tmp_path: Path, line: bytes, format_name: str, tokenizer: Tokenizer) -> None:
    read(tmp_path, [line], tokenizer, format_name)


@examples
@given(st.lists(LINES, max_size=4), st.sampled_from(["bee", "ccpm"]))
def test_damaged_lines(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, lines: list[bytes], format_name: str
) -> None:
    read(tmp_path_factory.getbasetemp(), lines, tokenizer, format_name)


@examples
@given(st.dictionaries(TEXTS, EXAMPLES, max_size=3), EXAMPLES)
def test_any_example(tokenizer: Tokenizer, example: dict[str, Any], answer: Any) -> None:
    encode(example | {"<ans>": answer}, tokenizer)


@examples
@given(TEXTS)
def test_encoding_round_trips(tokenizer: Tokenizer, text: str) -> None:
    written = text.replace("<", "<<")
    assert tokenizer.decode(*tokenizer.encode(written)) == written
