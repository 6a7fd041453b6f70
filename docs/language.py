"""Find terms that the glossary bans: `python docs/language.py`. Exits with 1 if there are any.

Checks the prose of Markdown files, the comments of the chart and of the Makefile, and in the package all comments,
docstrings and string literals that look like text. Code in Markdown (fences and backticks) is not prose.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
BANNED = {
    r"verbs?": "command",
    r"mend(s|ed|ing)?": "fix, repair",
    r"(go|goes|going|went|gone) on": "resume, continue",
    r"lifelines?": "parent process watch",
    r"patien(ce|tly|t)": "retry with backoff",
    r"there and back|way back": "forward and backward pass",
    r"comput\w+ again": "recompute, activation checkpointing",
    r"put(s|ting)? up with": "tolerate",
    r"lack(s|ed|ing)?": "missing, requires",
    r"can't be had": "is incompatible, is in use",
    r"somebody|someone|nobody|whoever|anybody": "name the subject",
    r"in words": "with a message, a reason",
    r"ends? (badly|well)|otherwise than well": "fails, succeeds, is cancelled",
    r"at all": "(leave it out)",
    r"stands? still": "hangs, stalls",
    r"the very": "the same",
    r"gets? on|for ever|in its turn|of its own accord": "continue, forever, then, automatically",
    r"firings?": "scheduled Job",
    r"raw rows?": "raw record",
    r"(training|evaluation|bad|invalid) rows?": "record, or packed row",
}
"""Each pattern with the terms to use instead."""
ALLOWED = [
    ("*.yaml", "verbs:", "a key of RBAC"),
    ("cpmbee_job/launch/kube/permissions.py", "verbs?", "RBAC's own term"),
    ("*", r"early.stop(ping)?.patience", "the field's name"),
]
"""Files, a pattern of what is allowed in them, and the reason."""
PROSE = ["README.md", "CONTRIBUTING.md", "docs/**/*.md", "helm/cpmbee-job/README.md", "k8s/README.md"]
COMMENTS = ["Makefile", "Dockerfile", ".ci/run", "helm/**/*.yaml", "helm/**/*.txt", "helm/**/*.tpl", "docs/how-to/ci/*"]
CODE = ["cpmbee_job/**/*.py", "benchmarks/*.py", "docs/*.py"]


class Line(NamedTuple):
    """A line of text that a person reads."""

    path: Path
    number: int
    text: str


def main() -> None:
    found = [problem for line in _lines() for problem in _problems(line)]
    for problem in found:
        print(problem)
    if found:
        sys.exit(f"{len(found)} banned terms")


def _problems(line: Line) -> Iterator[str]:
    text = line.text
    for pattern, allowed, _ in ALLOWED:
        if line.path.match(pattern):
            text = re.sub(allowed, lambda found: " " * len(found[0]), text, flags=re.IGNORECASE)
    for term, better in BANNED.items():
        for found in re.finditer(rf"\b({term})\b", text, flags=re.IGNORECASE):
            yield f"{line.path}:{line.number}: `{found[0]}`: write {better}"


def _lines() -> Iterator[Line]:
    for patterns, reader in ((PROSE, _markdown), (COMMENTS, _comments), (CODE, _python)):
        for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern)} - {Path(__file__)}):
            for number, text in reader(path.read_text(encoding="utf-8")):
                yield Line(path.relative_to(ROOT), number, text)


def _markdown(text: str) -> Iterator[tuple[int, str]]:
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, re.sub(r"`[^`]*`|\]\([^)]*\)", "", line)


def _comments(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.splitlines(), 1))


def _python(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, line


if __name__ == "__main__":
    main()
