"""`data.train` as a list of sets: parsing, and error messages."""

from pathlib import Path

import pytest

from cpmbee_job.errors import SpecError
from cpmbee_job.spec import DataSetSpec, JobSpec, load_spec, parse_spec

LIST = """\
name: a
model: m/
data: {train: [{path: t.jsonl, weight: 3}, {path: s3://b/more/, weight: 1, format: ccpm, in_context: [2, 1]}]}
output: runs/
"""


def parse(*overrides: str) -> JobSpec:
    return parse_spec(LIST, source="job.yaml", overrides=overrides)


def test_single_url_is_one_set() -> None:
    assert parse("data.train=t.jsonl").data.train_sets == (DataSetSpec(path="t.jsonl"),)


def test_paths_in_the_list_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(LIST)
    inputs = load_spec(tmp_path / "job.yaml").inputs
    assert inputs["data.train.0.path"] == str(tmp_path / "t.jsonl")
    assert inputs["data.train.1.path"] == "s3://b/more/"


def test_override_of_a_list_member() -> None:
    assert parse("data.train.1.weight=7").data.train_sets[1].weight == 7


def test_with_fields_of_a_list_member() -> None:
    spec = parse().with_fields({"data.train.0.path": "s3://b/t.jsonl", "image": "a:1"})
    assert (spec.data.train_sets[0].path, spec.data.train_sets[0].weight) == ("s3://b/t.jsonl", 3)
    assert spec.image == "a:1"


def test_yaml_round_trip_of_a_list() -> None:
    assert parse_spec(parse().to_yaml(), source="again") == parse()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train.1.wieght=1", "data.train.1.wieght: unknown key; did you mean data.train.1.weight?"),
        ("data.train.1.weight=0", "data.train.1.weight: Input should be greater than 0 (got 0)"),
        ("data.train.1.path=http://x", "data.train.1.path: must have the form s3://bucket/folder/"),
        ("data.train.1.format=x y", "data.train.1.format: has an invalid form (Format of the records: `bee`, `ccpm`"),
        ("data.train.1.in_context=[0, 0]", "data.train.1.in_context: must contain a frequency above 0"),
        ("data.train.1.in_context=[1, -1]", "data.train.1.in_context.1: Input should be greater than or equal to 0"),
        ("data.train.1={weight: 1}", "data.train.1.path: required, but missing"),
        ("data.train.1.weight=null", "data.train: set a weight for all sets or for none"),
        ("data.train=[]", "data.train: must contain a data set"),
        ("data.train={path: x}", "data.train: Input should be a valid string"),
        ("data.train.2.weight=1", "'2' is not an index of this list with 2 members"),
        ("data.train.first.weight=1", "'first' is not an index of this list with 2 members"),
    ],
)
def test_error_names_the_dotted_key(override: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(override)
    assert message in str(caught.value)
