"""Imports point one way: anode <- cnf <- train_flows."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {"anode": {"anode"}, "cnf": {"anode", "cnf"}, "train_flows": {"anode", "cnf", "train_flows"}}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        ours = {name.split(".")[0] for name in imported(path)} & set(ALLOWED)
        assert ours <= ALLOWED[package], f"{path} imports {ours - ALLOWED[package]}"


@pytest.mark.parametrize("name", ["plots.py", "image_plots.py"])
def test_plots_touch_no_model(name):
    names = {name.split(".")[0] for name in imported(ROOT / "train_flows" / "figures" / name)}
    assert not names & set(ALLOWED)


def test_the_loop_knows_no_model():
    names = {name.split(".")[0] for name in imported(ROOT / "train_flows" / "run" / "loop.py")}
    assert "cnf" not in names
