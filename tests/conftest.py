"""Fixtures that every kind of test shares."""

import os
import signal
from pathlib import Path

import pytest

import cpmbee_job  # noqa: F401 (before anything loads torch)

# Background processes of a shell ignore SIGINT, and child processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# nohup ignores SIGHUP likewise: child processes must receive it, and this process must survive it.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

TINY_VOCAB = [
    "<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>",
    *(chr(c) for c in range(33, 127)),
    *"今天气很好不错我你他是的了在有人这中大来上个国到说们为子和地出道也时年得就那要下以生会自着去之过家学对可里后小么心多",
    *("今天", "天气", "今天天气", "input", "question", "options", "answer", "hello", "the"),
    *"，。？！、：“”",
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `vocab.txt` of our own with the special tokens of the original in its order, ASCII, some words."""
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(TINY_VOCAB) + "\n", encoding="utf-8")
    return path


REFERENCE = os.environ.get("CPMBEE_REFERENCE")
needs_reference = pytest.mark.skipif(REFERENCE is None, reason="CPMBEE_REFERENCE names no reference answers")


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with real data and the original's answers; only for tests marked `needs_reference`."""
    assert REFERENCE is not None
    return Path(REFERENCE).absolute()


LONGEST = """
    " chart/test_templates integration/test_stalls integration/test_local integration/test_ci
    integration/test_store_faults integration/test_finetune integration/test_entrypoint
    integration/test_gpu_rehearsal integration/test_chaos reference/test_tutorial integration/test_readme
    integration/test_deterministic integration/test_mixture integration/test_metrics integration/test_on_cluster
    integration/test_worlds integration/test_loading integration/test_bmtrain integration/test_pipeline
    integration/test_benchmarks fuzz/test_records
""".split()
"""Files that take long, the longest first, so that parallel workers, which get them in this order, end together. The
chart's is the first: it may build helm."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {f"{name}.py": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get("/".join(item.path.parts[-2:]), len(ranks)))
