"""Shared fixtures: reproducible noise, one thread a worker, and real data where it is at hand."""

import os
from pathlib import Path

import pytest
import torch

from train_flows.__main__ import main

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def float64():
    """Make float64 the default type of the test."""
    torch.set_default_dtype(torch.float64)
    yield torch.float64
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets, named by AUGMENTED_FLOWS_DATA."""
    folder = os.environ.get("AUGMENTED_FLOWS_DATA")
    if not folder:
        pytest.skip("AUGMENTED_FLOWS_DATA is not set")
    return Path(folder)


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the pictures at the end out, where they are not the point."""
    for name in ("draw_density", "draw_classifier", "draw_snapshot"):
        monkeypatch.setattr(f"train_flows.figures.of_runs.{name}", lambda *_: [])
    monkeypatch.setattr("train_flows.figures.of_series.draw_forecasts", lambda *_: [])


@pytest.fixture
def unrepeated(monkeypatch):
    """Let the classifier two-sample test see few samples, where its figure is not the point."""
    monkeypatch.setattr("train_flows.evaluation.two_sample.REPEATS", 1)


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command line in an empty folder; gives exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        try:
            main([str(arg) for arg in args])
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
