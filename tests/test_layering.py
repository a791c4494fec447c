"""The shape of the code: which way imports point, and how large files and folders are."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {"anode": {"anode"}, "cnf": {"anode", "cnf"}, "train_flows": {"anode", "cnf", "train_flows"}}
FILES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]
MAX_FILES, MAX_LINES = 16, 400  # of a folder, of a file


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        ours = {name.split(".")[0] for name in imported(path)} & set(ALLOWED)
        assert ours <= ALLOWED[package], f"{path} imports {ours - ALLOWED[package]}"


@pytest.mark.parametrize(
    ("name", "unknown"),
    [
        *((f"figures/{name}.py", {"anode", "cnf"}) for name in ("plots", "image_plots", "table_plots", "mixed_plots")),
        ("run/loop.py", {"cnf"}),
    ],
)
def test_plots_and_the_loop_know_no_model(name, unknown):
    names = {name.split(".")[0] for name in imported(ROOT / "train_flows" / name)}
    assert not names & unknown


def test_no_file_name_occurs_twice():
    names = Counter(path.name for path in FILES)
    assert [name for name, count in names.items() if count > 1] == ["__init__.py"]


def test_folders_and_files_fit_in_the_head():
    folders = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert {str(folder): count for folder, count in folders.items() if count > MAX_FILES} == {}
    long = {str(path): len(path.read_text().splitlines()) for path in FILES}
    assert {path: lines for path, lines in long.items() if lines > MAX_LINES} == {}
