import json
from collections import Counter

import pytest

from cpmbee_job.data.encode.examples import Example, check_example, parse_object
from cpmbee_job.errors import DataError


def parse_line(line: bytes | str, warnings: Counter[str] | None = None, *, strict: bool = False) -> Example:
    return check_example(parse_object(line), warnings, strict=strict)


def nested(levels: int) -> str:
    return '{"a":' * levels + '""' + "}" * levels


def test_a_line_becomes_an_example() -> None:
    assert parse_line('{"input": "今天", "<ans>": {"a": "", "b": {}}}'.encode()) == {
        "input": "今天",
        "<ans>": {"a": "", "b": {}},
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"\xff{}", "not UTF-8 text .* byte 1"),
        (b'{"a": "b"', "not JSON: .* at character 10"),
        (b'{"a": "b"} {"a": "b"}', "not JSON: Extra data at character 12"),
        (b'["a"]', "must be an object, not a list"),
        (b'"a"', "must be an object, not text"),
        (b"null", "must be an object, not null"),
        (b'{"a": "b"}', "the key <ans> is missing"),
        (b'{"a": {"<ans>": "b"}}', "the key <ans> is missing"),
        (b'{"a": {"b": "1", "c": "2", "b": "3"}, "<ans>": ""}', r"^a\.b: repeated key"),
        (b'{"<ans>": "", "x": [{"y": "", "y": ""}]}', r"^x\.0\.y: repeated key"),
        (b'{"<ans>": "", "<ans>": ""}', "^<ans>: repeated key"),
        (b'{"a": "1", "a": "2" "c": "3"}', r"^not JSON: Expecting ',' delimiter at character 21$"),
        (b'{"a": {"b": ["x"]}, "<ans>": ""}', r"^a\.b: must be text or an object, not a list"),
        (b'{"a": "\\ud83d", "<ans>": ""}', "^a: invalid Unicode: half of a surrogate pair at character 1"),
        (
            b'{"a": {"x\\udc00": ""}, "<ans>": ""}',
            r"^a\.x\\udc00: invalid Unicode: half .* at character 2",
        ),
        (b'{"a": ' + b"1" * 5000 + b', "<ans>": ""}', "invalid JSON: .*digits"),
        (nested(100_000).encode(), "nested more than 64 levels"),
        (b'{"<ans>": ' + nested(64).encode() + b"}", "nested more than 64 levels"),
        (json.dumps({"<ans>": {str(n): "" for n in range(5000)}}).encode(), "more than 4096 keys and texts"),
    ],
)
def test_an_invalid_example_is_rejected_with_its_path(line: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_line(line)


def test_nesting_up_to_the_limit_is_accepted() -> None:
    assert parse_line('{"<ans>": ' + nested(63) + "}")


def test_messages_contain_keys_but_no_texts_of_the_example() -> None:
    with pytest.raises(DataError) as caught:
        parse_line('{"key": ["secret"], "<ans>": "secret"}')
    assert "secret" not in str(caught.value)


def test_long_keys_are_shortened_in_messages() -> None:
    with pytest.raises(DataError, match=r"^k{39}…: must be text or an object, not a list"):
        parse_line(json.dumps({"k" * 1000: [], "<ans>": ""}))


def test_numbers_booleans_and_null_become_text_and_are_counted() -> None:
    warnings: Counter[str] = Counter()
    line = '{"a": 1, "b": 1.50, "c": true, "d": null, "e": -0.0, "f": 1e400, "<ans>": 12345678901234567890123}'
    assert parse_line(line, warnings) == {
        "a": "1", "b": "1.50", "c": "true", "d": "null", "e": "-0.0", "f": "1e400", "<ans>": "12345678901234567890123",
    }  # fmt: skip
    assert warnings == {"a number taken as text": 5, "a boolean taken as text": 1, "null taken as text": 1}


@pytest.mark.parametrize("value", ["1", "2.5", "true", "null", "NaN"])
def test_strict_rejects_values_that_are_not_text(value: str) -> None:
    with pytest.raises(DataError, match=r"^a: must be text, not"):
        parse_line(f'{{"a": {value}, "<ans>": ""}}', strict=True)


@pytest.mark.parametrize("raw", [{1: "a", "<ans>": ""}, {"a": b"x", "<ans>": ""}, {"a": {"b"}, "<ans>": ""}, [], None])
def test_objects_without_a_json_type_are_rejected(raw: object) -> None:
    with pytest.raises(DataError):
        check_example(raw)


def test_an_object_that_contains_itself_is_rejected() -> None:
    raw: dict[str, object] = {"<ans>": ""}
    raw["a"] = raw
    with pytest.raises(DataError, match="nested"):
        check_example(raw)


def test_an_object_of_exponential_size_is_rejected() -> None:
    raw: object = ""
    for _ in range(40):
        raw = {"a": raw, "b": raw}
    with pytest.raises(DataError, match="more than 4096"):
        check_example({"<ans>": raw})


def test_a_raw_record_may_contain_any_json() -> None:
    assert parse_object(b'{"choices": ["a", "b"], "answer": 1}') == {"choices": ["a", "b"], "answer": 1}
