"""The Python examples of every README run as they stand."""

import re
from pathlib import Path

import pytest
import torch

import anode
import cnf

ROOT = Path(__file__).parent.parent
MANUALS = sorted([ROOT / "README.md", *ROOT.glob("*/README.md")])


@pytest.mark.parametrize("manual", MANUALS, ids=lambda path: path.parent.name)
def test_python_examples_run(manual, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    cnf.save(cnf.density_model((2,), hidden=(8, 8)), "runs/moons")
    anode.save(anode.classifier_model((2,), 1, extra=5), "runs/spheres")
    blocks = re.findall(r"^```python\n(.*?)^```", manual.read_text(), flags=re.DOTALL | re.MULTILINE)
    for block in blocks:
        exec(block, {})  # each stands alone


def test_first_commands_set_up_and_run():
    readme = (ROOT / "README.md").read_text()
    commands = [
        line for block in re.findall(r"```console\n(.*?)```", readme, flags=re.DOTALL) for line in block.splitlines()
    ]
    assert commands[0] == "python -m pip install -e . && train-flows density moons"
    assert 'python -m pip install -e ".[dev]" && pytest' in commands
    assert len(readme.splitlines()) <= 130
