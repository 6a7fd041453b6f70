"""Draw inputs: how many, where the known ones are, and how to damage a good one.

The tests replay the known inputs and a few that are the same in every run. `make fuzz` searches: it draws FUZZ_EXAMPLES
new inputs for each property. Add an input that fails to the corpus, as `corpus/<subject>/<what it is>`; the failed test
prints how to draw it again.
"""

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"
FEW = 20
"""Inputs of each property where no search is asked for."""
_SEARCH = int(os.environ.get("FUZZ_EXAMPLES", "0"))

examples = settings(
    max_examples=_SEARCH or FEW,
    derandomize=not _SEARCH,
    print_blob=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def corpus(subject: str) -> list[Any]:
    """The known inputs of a subject as a test's parameters, each with its file's name."""
    paths = sorted((CORPUS / subject).iterdir())
    return [pytest.param(path.read_bytes(), id=path.name) for path in paths]


@st.composite
def damaged(draw: st.DrawFn, seeds: Sequence[bytes], pieces: Sequence[bytes] = ()) -> bytes:
    """Draw a seed with bytes altered, removed or repeated, or with `pieces` inserted."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 16))
        new = draw(st.binary(max_size=8) | st.sampled_from([*pieces, b"", b"\0" * 8, b"\xff" * 4, data[:at][-length:]]))
        data = data[:at] + new + data[at + draw(st.sampled_from([0, length, len(new), len(data)])) :]
    return data


STRANGE = st.sampled_from(
    [None, True, -1, 0, 1, 2**63, 10**400, 1.5, float("inf"), float("nan"), "", "x", "1", "..", "../x", "\x00", "²",
     "\ud800", "天" * 99, [], {}, [[]], [None], {"": None}, "1e999",
     "2026-01-31T23:59:59Z", "9999-12-31T23:59:59-23:00"]
) | st.text(max_size=9) | st.integers() | st.floats()  # fmt: skip


@st.composite
def altered(draw: st.DrawFn, documents: Sequence[Any]) -> Any:
    """Draw one of the JSON documents with values replaced or removed."""
    document = json.loads(json.dumps(draw(st.sampled_from(documents))))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            break
        node, key = draw(st.sampled_from(places))
        if draw(st.booleans()):
            node[key] = copy.deepcopy(draw(STRANGE))
        else:
            del node[key]
    return document


def damaged_json(documents: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """JSON documents with other values or other bytes than they should have."""
    written = [json.dumps(document).encode() for document in documents]
    numbers = (b"1e999", b"NaN", b"-1", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b'"\\ud800"', b"null")
    return altered(documents).map(lambda document: json.dumps(document).encode()) | damaged(written, numbers)


def _places(node: Any) -> Any:
    for key, value in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)
