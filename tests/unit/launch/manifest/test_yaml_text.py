import pytest

from cpmbee_job.launch.manifest.yaml_text import to_yaml


def test_an_id_that_other_parsers_read_as_a_number_is_quoted() -> None:
    assert to_yaml({"cpmbee-job/run": "123456789e12"}) == "cpmbee-job/run: '123456789e12'\n"


@pytest.mark.parametrize("text", ["0x1f", "0o17", "1_000", ".5", "-1", "1e3", "y", "N", "yes", "null", "~", "12:30"])
def test_a_string_that_looks_like_another_type_is_quoted(text: str) -> None:
    assert to_yaml({"x": text}) == f"x: '{text}'\n"


def test_multi_line_strings_are_blocks() -> None:
    assert to_yaml({"x": "a: 1\nb: 2\n"}) == "x: |\n  a: 1\n  b: 2\n"
