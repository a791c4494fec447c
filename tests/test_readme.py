"""The README's code runs as it stands, and its settings exist."""

import json
import re
from importlib.metadata import entry_points
from pathlib import Path

import torch

from cnf import density_model, save

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_api_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(density_model((2,), hidden=(8, 8)), "runs/moons")
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 3
    names = [{}, {}, {}]  # each block stands alone
    for block, own in zip(blocks, names, strict=True):
        exec(block, own)
    assert names[0]["x"].shape == (1000, 2)
    assert names[1]["y"].shape == (100, 2)
    assert torch.isfinite(names[1]["log_p"]).all()
    assert names[2]["logits"].shape == (64, 10)
    assert names[2]["nfe"].forward > 0


def test_command_lines_are_those_of_the_package():
    assert 'python -m pip install -e ".[dev]" && pytest' in README
    assert "python -m pip install -e . && train-flows density moons" in README
    assert {script.name for script in entry_points(group="console_scripts")} >= {"train-flows"}


def test_results_are_those_of_the_files():
    """Every row of the table of results stands in the file it names."""
    rows = re.findall(r"^\| `(train-flows density [^`]+)` \| (.+) \|$", README, flags=re.MULTILINE)
    assert rows
    for command, cells in rows:
        *figures, file = [cell.strip() for cell in cells.split("|")]
        result = json.loads((Path(__file__).parent.parent / "assets" / "results" / file.strip("`")).read_text())
        shown = result["nll"]["value_standardized"] if "standardized" in figures[0] else result["nll"]["value"]
        assert f"{shown:.3f}" in figures[0]
        assert f"{result['nll']['standard_error']:.3f}" in figures[0]
        assert command.split()[2] in result["command"]
