"""Runs that are killed at random moments continue to the same records and weights, bit for bit."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from .small_runs import log_of, outcome, start, train_small

ROOT = Path(__file__).parents[2]
OPTIONS = ("--steps", "30", "--validate-every", "2", "--batch-size", "64", "--hidden", "16", "16")


def kill_small_runs(kills: int, seed: int, folder: Path) -> dict[str, int]:
    """Kill small runs at random moments between start and end, and continue them.

    Args:
        kills: number of runs.
        seed: of the moments.
        folder: to work in.

    Returns:
        ``before``, ``writing`` and ``ended`` count kills that met a run without configuration, a file being written,
        and a run with a result; ``identical`` counts the runs that reached the same records, weights and NLL.
    """
    finish(folder / "whole")
    started = time.monotonic()
    finish(folder / "timed")  # the first one had to wait for the process that others are forked from
    seconds, whole = time.monotonic() - started, outcome(folder / "whole")
    found = {"kills": kills, "before": 0, "writing": 0, "ended": 0, "identical": 0}
    for i, moment in enumerate(np.random.default_rng(seed).uniform(0.3 * seconds, seconds, kills)):
        run = folder / f"run-{i}"
        process = start(run)
        process.join(moment)
        process.kill()
        process.join()
        found["before"] += not (run / "config.json").exists()
        found["writing"] += bool(list(run.glob(".*.partial")))
        found["ended"] += (run / "result.json").exists()
        finish(run)
        found["identical"] += outcome(run) == whole
    return found


def finish(folder: Path) -> None:
    """Train a run to its end, from wherever it is."""
    process = start(folder)
    process.join()
    assert process.exitcode == 0, log_of(folder)


def kill_programs(kills: int, seed: int, folder: Path) -> dict[str, int]:
    """Kill ``train-flows density TABLE`` at random moments after its first state, and continue it by ``--resume``."""
    table = folder / "table.csv"
    np.savetxt(table, np.random.default_rng(0).normal(size=(600, 3)), delimiter=",")  # fewer pictures than moons
    whole = program("density", table, *OPTIONS, "--out", folder / "whole")
    for i, moment in enumerate(np.random.default_rng(seed).uniform(0, 3, kills)):
        run = folder / f"run-{i}"
        process = program("density", table, *OPTIONS, "--out", run)
        while not (run / "state.pt").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moment)
        process.kill()
        process.wait()
        assert program("density", "--resume", run).wait() == 0
    assert whole.wait() == 0
    identical = [outcome(folder / f"run-{i}") == outcome(folder / "whole") for i in range(kills)]
    return {"kills": kills, "identical": sum(identical)}


def program(*args: object) -> subprocess.Popen[bytes]:
    """Start a command line of ``train-flows``."""
    command = [sys.executable, "-m", "train_flows", *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_killed_runs_are_identical(tmp_path):
    found = kill_small_runs(2, seed=1, folder=tmp_path)
    assert found["identical"] == found["kills"] == 2


def test_killed_programs_are_identical(tmp_path):
    found = kill_programs(1, seed=0, folder=tmp_path)
    assert found["identical"] == found["kills"] == 1


def test_runs_that_differ_are_told_apart(tmp_path):
    train_small(tmp_path / "run")
    records, weights, nll = outcome(tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"nll": 2.', '"nll": 3.', 1))
    assert outcome(tmp_path / "run") != (records, weights, nll)
