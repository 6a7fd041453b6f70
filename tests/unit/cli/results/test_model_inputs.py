from pathlib import Path

import pytest

from tests.cli_runner import run_cli


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("predict", "--model", "MODEL", "--input", "nowhere.jsonl"), 102, "nowhere.jsonl"),
        (("predict", "--model", "nowhere", "--input", "EXAMPLES"), 102, "nowhere"),
        (("predict", "--model", "MODEL", "--input", "EXAMPLES", "--beam-size", "0"), 2, "--beam-size"),
        (("predict", "--model", "MODEL", "--input", "EXAMPLES", "--delta", "nowhere"), 102, "nowhere"),
        (("predict", "--model", "MODEL", "--input", "EXAMPLES", "--delta", "MODEL"), 3, "delta"),
        (("evaluate", "--model", "MODEL", "--data", "EXAMPLES", "--format", "cpm"), 2, "ccpm"),
        (("evaluate", "--model", "MODEL", "--data", "ftp://x/y"), 2, "ftp"),
        (("model", "merge", "--model", "MODEL", "--delta", "DELTA", "--out", "MODEL"), 5, "exists already"),
    ],
)
def test_invalid_inputs_are_named(
    model: Path, delta: Path, examples: Path, arguments: tuple[str, ...], code: int, word: str
) -> None:
    places = {"MODEL": model, "DELTA": delta, "EXAMPLES": examples}
    done = run_cli(*(places.get(a, a) for a in arguments))
    assert done.code == code, done.err
    assert word in done.err
