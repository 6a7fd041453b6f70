"""The shape of the package: short files and functions, and names that mean one thing."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

from tests.paths import ROOT

PACKAGE = ROOT / "cpmbee_job"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_MODULES = 400, 80, 16


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_file_is_too_long():
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_too_long():
    lengths = {
        f"{name(path)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {function: length for function, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def test_no_folder_has_too_many_modules():
    folders = defaultdict(list)
    for path in FILES:
        if path.name != "__init__.py":
            folders[name(path.parent)].append(path.name)
    assert {folder: modules for folder, modules in folders.items() if len(modules) > MAX_MODULES} == {}


def test_a_module_name_means_one_module_or_a_command_and_what_it_calls():
    places = defaultdict(list)
    for path in FILES:
        if path.stem not in ("__init__", "__main__"):
            places[path.stem].append(name(path))
    repeated = {
        stem: paths
        for stem, paths in places.items()
        if len(paths) > 2 or (len(paths) == 2 and not any(path.startswith("cpmbee_job/cli/") for path in paths))
    }
    assert repeated == {}


def test_a_public_class_name_means_one_class():
    places = defaultdict(list)
    for path in FILES:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name(path))
    assert {cls: paths for cls, paths in places.items() if len(paths) > 1} == {}
