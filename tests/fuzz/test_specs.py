"""Any job spec and any `--set` give a `JobSpec` that round-trips through YAML, or an error with the location."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpmbee_job.errors import SpecError, UsageError
from cpmbee_job.spec import parse_spec
from cpmbee_job.spec.reading import known_keys
from tests.fuzz.fuzzing import STRANGE, altered, corpus, damaged, damaged_json, examples

SPEC = {
    "name": "a",
    "model": "m/",
    "data": {"train": [{"path": "t.jsonl", "weight": 1}], "eval": "e.jsonl"},
    "output": "s3://bucket/runs/",
    "train": {"lr": 1e-4, "epochs": 2},
    "lora": {"modules": ["project_q"]},
    "workers": {"count": 2, "resources": {"rdma/hca": 1}},
    "cluster": {"labels": {"a": "b"}, "tolerations": [{"key": "a"}], "pod_overlay": {"spec": {"nodeName": "n"}}},
    "storage": {"endpoint_url": "http://localhost:1"},
}
WRITTEN = b"""name: a
model: &m m/
data: {train: t.jsonl, <<: {eval: e.jsonl}}
output: runs/  # here
train:
  lr: 1e-4
  seed: 0x10
cluster: {env: {A: "\\u5929", B: *m}, annotations: {c: |-
  text
  }}
"""
PIECES = [
    b"&a ", b"*a", b"*m", b"[", b"{", b"? ", b": ", b"- ", b"<<: *m", b"!!int ", b"!!float ", b"!!timestamp x", b"0o9",
    b"!!set ", b"!!bool x", b"!!python/name:os.system ", b"!x ", b"1:2:3", b".nan", b"-.inf", b"2001-99-99", b"0x",
    b"%YAML 9", b"---\n", b"\t", b"1e999", b"= ", b"~", b"\xef\xbb\xbf", b"\xc2\x85", b"9" * 5000, b'"\\ud800"',
    b'"\\Uffffffff"',
]  # fmt: skip
PATHS = st.sampled_from(
    [
        *known_keys(),
        "data.train.0.path",
        "data.train.²",
        "lora.modules.9",
        "x.y",
        "",
        ".",
        "name.x",
        "workers.resources.x",
    ]
)


def read(text: str, overrides: tuple[str, ...] = ()) -> None:
    try:
        spec = parse_spec(text, source="job.yaml", overrides=overrides)
    except (SpecError, UsageError) as error:
        lines = error.message.splitlines()
        assert lines
        assert all(line.startswith(("job.yaml: ", "--set ")) for line in lines[:1])
        assert len(error.message) < 1 << 16  # noqa: PT017
    else:
        assert parse_spec(spec.to_yaml(), source="job.yaml") == spec


@pytest.mark.parametrize("text", corpus("specs"))
def test_known_texts(text: bytes) -> None:
    read(text.decode("utf-8", "replace"))


@pytest.mark.parametrize("override", corpus("overrides"))
def test_known_overrides(override: bytes) -> None:
    read(json.dumps(SPEC), (override.decode(),))


@examples
@given(damaged([WRITTEN], PIECES))
def test_damaged_yaml(text: bytes) -> None:
    read(text.decode("utf-8", "replace"))


@examples
@given(damaged_json([SPEC]))
def test_damaged_json(text: bytes) -> None:
    read(text.decode("utf-8", "replace"))


@examples
@given(altered([SPEC]))
def test_other_values(document: object) -> None:
    read(json.dumps(document))


@examples
@given(st.lists(st.sampled_from(PIECES) | st.sampled_from([b"a", b"\n", b" ", b"1"]), max_size=30).map(b"".join))
def test_any_yaml(text: bytes) -> None:
    read(text.decode("utf-8", "replace"))


@examples
@given(PATHS | st.text(max_size=20), STRANGE.map(json.dumps) | st.sampled_from(PIECES).map(bytes.decode) | st.text())
def test_any_override(path: str, value: str) -> None:
    read(json.dumps(SPEC), (f"{path}={value}",))
