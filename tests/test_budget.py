"""Training within the minutes of a sitting: it stops by itself, reports what it has, and goes on to the same end."""

import json
import time
from pathlib import Path

import pytest
import torch

from anode import storage
from train_flows import density, processes
from train_flows.benchmark import children
from train_flows.checkpoint import Run

AT_ONCE = ("--budget-minutes", "1e-9")
SIZE = ("--hidden", "8", "8", "--batch-size", "64")
TINY = ("density", "moons", *SIZE, "--steps", "6", "--validate-every", "2", "--divergence", "hutchinson")


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    monkeypatch.setattr("train_flows.pictures.draw", lambda *_: None)
    monkeypatch.setattr("train_flows.pictures.draw_classifier", lambda *_: None)


def until(step, monkeypatch):
    """Let an hour pass while the batch before a step is read."""
    now = [0.0]
    batches = density._batches

    def slow(*args):
        batch = batches(*args)

        def read(i):
            now[0] += 3600.0 * (i == step - 1)
            return batch(i)

        return read

    monkeypatch.setattr(density, "_batches", slow)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])


def alike(one, other):
    """Whether two runs have the same weights and records, but for what the clock says."""
    weights = [storage.read_weights(folder) for folder in (one, other)]
    records = [
        [{name: x for name, x in record.items() if "seconds" not in name} for record in Run(folder).records()]
        for folder in (one, other)
    ]
    return records[0] == records[1] and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("step", [1, 4])
def test_sittings_add_up_bit_for_bit(run, monkeypatch, step):
    assert run(*TINY, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        until(step, patch)
        status, out, err = run(*TINY, "--out", "parts", "--budget-minutes", "59")
    assert (status, err) == (0, "")
    assert out.endswith(
        f"training is at step {step} of 6, its time was up; continue with: train-flows density --resume parts\n"
    )
    assert Run("parts").step == step
    result = json.loads(Path("parts/result.json").read_text())
    assert result["notes"][-1] == f"training is at step {step} of 6, its time was up"
    assert "value" in result["nll"]

    status, out, _ = run("density", "--resume", "parts", *AT_ONCE)  # a sitting too short for a step
    assert status == 0
    assert f"step {step} of 6" in out
    assert Run("parts").step == step
    status, out, _ = run("density", "--resume", "parts", "--budget-minutes", "1e6")
    assert status == 0
    assert "continue with" not in out
    assert alike("whole", "parts")
    assert "notes" not in json.loads(Path("parts/result.json").read_text())


def test_a_budget_is_of_its_sitting(run):
    """Resuming without one goes on to the end, whatever the first sitting had."""
    assert "step 0 of 6" in run(*TINY, *AT_ONCE)[1]
    assert run("density", "--resume", "runs/moons")[0] == 0
    assert Run("runs/moons").step == 6


def test_a_tenth_is_left_for_the_report(run, monkeypatch):
    with monkeypatch.context() as patch:
        until(2, patch)
        assert run(*TINY, "--budget-minutes", "67")[0] == 0  # 60 minutes are less than nine tenths
    assert Run("runs/moons").step == 6
    with monkeypatch.context() as patch:
        until(2, patch)
        assert run(*TINY, "--budget-minutes", "66", "--overwrite")[0] == 0
    assert Run("runs/moons").step == 2


def test_classifiers_too(run):
    args = ("classify", "spheres", "--hidden", "8", "--epochs", "1", "--batch-size", "256")
    assert run(*args, "--out", "whole")[0] == 0
    status, out, _ = run(*args, "--out", "parts", *AT_ONCE)
    assert status == 0
    steps = Run("whole").step
    assert f"training is at step 0 of {steps}, its time was up; continue with: train-flows classify --res" in out
    assert "accuracy" in json.loads(Path("parts/result.json").read_text())
    assert run("classify", "--resume", "parts")[0] == 0
    assert alike("whole", "parts")


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_a_budget_that_is_none(run, minutes):
    for command in (TINY, ("classify", "spheres")):
        status, _, err = run(*command, "--budget-minutes", minutes)
        assert status == 2
        assert f"--budget-minutes {float(minutes)} must be a positive number" in err


def test_processes_stop_together(tmp_path):
    both = children.start_together(2, [*TINY, *AT_ONCE, "--out", str(tmp_path / "run")], tmp_path / "log")
    for child in both:
        child.join(120)
    said = (tmp_path / "log.0.log").read_text()
    assert [child.exitcode for child in both] == [0, 0], said
    assert "training is at step 0 of 6, its time was up" in said


def test_the_first_process_whose_time_is_up_stops_all(run, monkeypatch):
    """Those with time left report, too, rather than take it for a signal."""
    with monkeypatch.context() as patch:
        patch.setattr(processes, "everywhere", lambda here, device: False)
        status, out, _ = run(*TINY, "--budget-minutes", "1e6")
    assert status == 0
    assert "training is at step 0 of 6, its time was up" in out
