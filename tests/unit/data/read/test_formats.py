import sys
from pathlib import Path
from typing import Any

import pytest

from cpmbee_job.data.read.formats import ccpm_example, converter
from cpmbee_job.errors import DataError, SpecError

RECORD = {"target": "1", "input": "[翻译]灯又亮了。[0]残灯灭[1]残灯明[答案]"}
EXAMPLE = {
    "input": "灯又亮了。",
    "options": {"<option_0>": "残灯灭", "<option_1>": "残灯明"},
    "question": "这段话形容了哪句诗的意境？",
    "<ans>": "<option_1>",
}


def test_a_ccpm_record_becomes_the_tutorials_form() -> None:
    example = ccpm_example(RECORD)
    assert example == EXAMPLE
    assert list(example) == list(EXAMPLE)


@pytest.mark.parametrize("num_options", [1, 2, 4, 12])
def test_any_number_of_options_is_read(num_options: int) -> None:
    text = "[翻译]甲" + "".join(f"[{n}]诗{n}" for n in range(num_options)) + "[答案]"
    example = ccpm_example({"input": text, "target": num_options - 1})
    assert example["options"] == {f"<option_{n}>": f"诗{n}" for n in range(num_options)}
    assert example["<ans>"] == f"<option_{num_options - 1}>"


def test_brackets_without_a_number_are_text() -> None:
    example = ccpm_example({"input": "[翻译]甲[注]乙\n[0]丙[丁][1][][答案]", "target": 0})
    assert example["input"] == "甲[注]乙\n"
    assert example["options"] == {"<option_0>": "丙[丁]", "<option_1>": "[]"}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"target": "0"}, "input: missing"),
        ({"input": ["x"], "target": "0"}, "input: missing or not text"),
        ({"input": "甲[0]乙[答案]", "target": "0"}, "input: must have the form"),
        ({"input": "[翻译]甲[0]乙", "target": "0"}, "input: must have the form"),
        ({"input": "[翻译]甲[答案]", "target": "0"}, "input: options must be numbered"),
        ({"input": "[翻译]甲[0]乙[2]丙[答案]", "target": "0"}, "input: options must be numbered"),
        ({"input": "[翻译]甲[1]乙[0]丙[答案]", "target": "0"}, "input: options must be numbered"),
        (RECORD | {"target": "2"}, "target: must be the number of one of the 2 options"),
        (RECORD | {"target": -1}, "target: must be the number of one of the 2 options"),
        (RECORD | {"target": True}, "target: must be the number of one of the 2 options"),
        (RECORD | {"target": 1.0}, "target: must be the number of one of the 2 options"),
        (RECORD | {"target": ""}, "target: must be the number of one of the 2 options"),
        ({"input": RECORD["input"]}, "target: must be the number of one of the 2 options"),
    ],
)
def test_an_invalid_ccpm_record_is_rejected_with_the_reason(record: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        ccpm_example(record)


def test_a_users_function_is_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_format.py").write_text(
        "def convert(record):\n    return {'input': record['text'], '<ans>': record['label']}\nnumber = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    convert = converter("my_own_format:convert")
    assert convert({"text": "a", "label": "b"}) == {"input": "a", "<ans>": "b"}
    with pytest.raises(DataError, match="my_own_format:convert failed: KeyError: 'label'"):
        convert({"text": "a"})
    with pytest.raises(SpecError, match="must be a function, not int"):
        converter("my_own_format:number")
    with pytest.raises(SpecError, match="import failed: AttributeError"):
        converter("my_own_format:other")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ccmp", "did you mean ccpm"),
        ("parquet", "use one of bee, ccpm, or module:function"),
        ("no_such_module:f", "ModuleNotFoundError: No module named 'no_such_module'"),
        (":f", "import failed"),
        ("json:", "import failed"),
    ],
)
def test_an_unknown_format_is_rejected(name: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        converter(name)
    assert words in str(caught.value)
