"""Measure what the tests notice: `python -m tests.mutants --seed N --count 60 [--tree FOLDER] [--python PROGRAM]`.

Each mutant is one small mistake, drawn at random, in a copy of the repository: a comparison or boolean operator
swapped, a constant off by one, a condition negated, a return value dropped, a statement removed. The unit tests of its
package run on it, then some integration tests. Prints a JSON line for each mutant and a last one with the counts.
A mutant that exceeds the time limit counts as killed.
"""

import argparse
import ast
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.paths import ROOT

INTEGRATION = {
    "store": "test_stores test_s3 test_s3_uploads test_s3_downloads test_cache".split(),
    "train": "test_worlds test_golden_losses".split(),
    "data": "test_prepare test_mixture".split(),
    "launch": "test_submit test_submit_if_changed test_resume test_promote".split(),
}
"""The files for each package, beside `tests/unit/<package>`."""
_PAIRS = (
    (ast.Eq, ast.NotEq), (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Is, ast.IsNot), (ast.In, ast.NotIn),
    (ast.And, ast.Or),
)  # fmt: skip
SWAPPED: dict[type[ast.AST], type[ast.AST]] = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}


@dataclass(frozen=True)
class Change:
    """One that can be made in a module: what is replaced, and by what."""

    line: int
    what: str
    apply: Callable[[], None]


def changes(tree: ast.Module) -> Iterator[Change]:
    """All of them, each to be applied to this tree alone. Annotations and texts stay."""
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    for node in ast.walk(tree):
        if is_left_alone(node, parents):
            continue
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
            other = SWAPPED[type(node.ops[0])]
            yield Change(line, f"{type(node.ops[0]).__name__} -> {other.__name__}", setter(node.ops, 0, other()))
        elif isinstance(node, ast.BoolOp):
            other = SWAPPED[type(node.op)]
            yield Change(line, f"{type(node.op).__name__} -> {other.__name__}", setter(vars(node), "op", other()))
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            yield Change(line, f"{node.value} -> {node.value + 1}", setter(vars(node), "value", node.value + 1))
        elif isinstance(node, ast.Return) and not is_none(node.value):
            yield Change(line, "return None", setter(vars(node), "value", ast.Constant(None)))
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            negated = ast.UnaryOp(ast.Not(), node.test)
            yield Change(line, f"not {ast.unparse(node.test)}", setter(vars(node), "test", negated))
        for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            for number, statement in enumerate(body if isinstance(body, list) else []):
                if is_removable(statement):
                    text = ast.unparse(statement).partition("\n")[0]
                    yield Change(statement.lineno, f"removed: {text}", setter(body, number, ast.Pass()))


def setter(owner: "list[ast.AST] | dict[str, object]", key: "int | str", new: object) -> Callable[[], None]:
    def apply() -> None:
        owner[key] = new  # type: ignore[index, call-overload]

    return apply


def is_none(node: ast.AST | None) -> bool:
    return node is None or (isinstance(node, ast.Constant) and node.value is None)


def is_removable(node: ast.stmt) -> bool:
    """A call for its effect, or an assignment to what has a value already."""
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    return is_call or isinstance(node, ast.AugAssign | ast.Raise | ast.Delete)


def is_left_alone(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Annotations and formatted texts."""
    while (parent := parents.get(node)) is not None:
        if isinstance(parent, ast.JoinedStr | ast.AnnAssign) and node is not getattr(parent, "value", None):
            return True
        if node in (getattr(parent, "annotation", None), getattr(parent, "returns", None)):
            return True
        node = parent
    return False


@dataclass(frozen=True)
class Mutant:
    package: str
    path: Path
    """In the repository."""
    line: int
    what: str
    text: str
    """The whole module."""


def draw(tree: Path, seed: int, count: int) -> list[Mutant]:
    """Packages take turns; within one, each change of each module is as likely as any other."""
    rng = random.Random(seed)
    sites: dict[str, list[tuple[Path, int]]] = {}
    for package in INTEGRATION:
        for path in sorted((tree / "cpmbee_job" / package).rglob("*.py")):
            num = sum(1 for _ in changes(ast.parse(path.read_text(encoding="utf-8"))))
            sites.setdefault(package, []).extend((path, number) for number in range(num))
    mutants = []
    for package in [package for _ in range(-(-count // len(sites))) for package in sites][:count]:
        path, number = sites[package].pop(rng.randrange(len(sites[package])))
        module = ast.parse(path.read_text(encoding="utf-8"))
        change = list(changes(module))[number]
        change.apply()
        text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(module)))
        mutants.append(Mutant(package, path.relative_to(tree), change.line, change.what, text))
    return mutants


def run_tests(python: str, folder: Path, package: str, limit: float) -> str:
    """`passed`, or which tests were not: `unit` or `integration`, or `timeout`."""
    integration = [f"tests/integration/{name}.py" for name in INTEGRATION[package]]
    for kind, paths in (("unit", [f"tests/unit/{package}"]), ("integration", integration)):
        command = [python, "-m", "pytest", "-q", "-x", *paths]
        environment = {**os.environ, "PYTHONPATH": str(folder), "CPMBEE_SEED": "mutants"}
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            if process.wait(limit):
                return kind
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the mutant's processes may live on
            process.wait()
    return "passed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--tree", type=Path, default=ROOT, help="the repository (default: this one)")
    parser.add_argument("--python", default=sys.executable, help="the Python that runs the tests")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for the tests of each kind")
    arguments = parser.parse_args()
    mutants = draw(arguments.tree, arguments.seed, arguments.count)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name) / "repository"
        ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", "build", ".coverage*")
        shutil.copytree(arguments.tree, folder, ignore=ignored)
        for package in {mutant.package for mutant in mutants}:
            if (end := run_tests(arguments.python, folder, package, arguments.limit)) != "passed":
                sys.exit(f"{package}: the tests fail without a mutant: {end}")
        for number, mutant in enumerate(mutants):
            before, began = (folder / mutant.path).read_text(encoding="utf-8"), time.monotonic()
            (folder / mutant.path).write_text(mutant.text, encoding="utf-8")
            end = run_tests(arguments.python, folder, mutant.package, arguments.limit)
            (folder / mutant.path).write_text(before, encoding="utf-8")
            result = "survived" if end == "passed" else "killed"
            counts[result] += 1
            place = {"number": number, "file": str(mutant.path), "line": mutant.line, "change": mutant.what}
            tell({**place, "result": result, "by": end, "seconds": round(time.monotonic() - began)})
    tell({"seed": arguments.seed, "count": len(mutants), **counts})


def tell(document: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
