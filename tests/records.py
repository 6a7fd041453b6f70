"""Records as the store holds them, for tests that need one of the right form."""

from typing import Any


def data_record(**fields: Any) -> dict[str, Any]:
    """What a run is bound to, of one small data set; `fields`: its own."""
    one = {"url": "t.jsonl", "weight": None, "prepared": "digest", "listing": "digest", "rows": 4} | fields
    return {
        "vocabulary": {"size": 100, "bos_id": 6, "eos_id": 7},
        "train": {"rows": one["rows"], "sets": [one]},
        "eval": None,
    }
