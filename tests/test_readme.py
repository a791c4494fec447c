"""The README's code runs as it stands, and its settings exist."""

import json
import math
import re
from importlib.metadata import entry_points
from pathlib import Path

import torch

from cnf import density_model, save

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


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


def cells(result):
    """A row of the README's table, from the file of its results."""
    nll, gaussian, entropy = result["nll"], result.get("gaussian_nll"), ""
    if "8gaussians" in result["command"]:
        entropy = f" (entropy {math.log(8) + math.log(2 * math.pi * math.e) + 2 * math.log(0.5 / 1.414):.3f})"
    value, beside = nll["value"], entropy
    if gaussian is not None:
        value = nll["value_standardized"]
        beside = f" (standardized; full-covariance Gaussian {gaussian - nll['value'] + value:.3f})"
    return [
        f"`{result['command']}`",
        f"{value:.3f} +- {nll['standard_error']:.3f}{beside}",
        f"{result['nfe_log_prob']:.0f} / {result['nfe_sample']}",
        f"{result['seconds']:.0f}",
    ]


def test_the_table_of_results_is_that_of_the_files():
    rows = re.findall(r"^\| (`train-flows density .+) \|$", README, flags=re.MULTILINE)
    assert len(rows) == 3
    for row in rows:
        *shown, file = row.split(" | ")
        result = json.loads((ROOT / "assets" / "results" / file.strip("`")).read_text())
        assert shown == cells(result)
        assert (result["nll"]["kind"], result["nll"]["tolerance"]) == ("exact", {"rtol": 1e-5, "atol": 1e-5})
        assert result["seed"] == 0
