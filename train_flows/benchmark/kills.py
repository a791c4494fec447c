"""Runs that are killed at random moments, and what becomes of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from anode import storage
from train_flows.benchmark import children
from train_flows.checkpoint import RESULT, Run
from train_flows.errors import TrainingError

STEPS = 40
OFTEN = 2  # steps between states, so that many kills meet one that is being written
TIMES = ("seconds", "seconds_training")  # what differs between equal runs


class Ended(NamedTuple):
    """What a run came to, but for the time it took.

    Attributes:
        weights: the best.
        records: of its metrics.
        nll: of the test part.
    """

    weights: dict[str, torch.Tensor]
    records: list[dict[str, Any]]
    nll: Any


def survive(count: int, seed: int, folder: Path) -> dict[str, int]:
    """Kill runs at random moments, from their start to their end, continue them, and compare with one left alone.

    Args:
        count: how many runs.
        seed: of the moments.
        folder: to work in.

    Returns:
        ``kills``; ``before``, those that met no run yet, which was started again; ``writing``, those that met a file
        being written; ``ended``, those that met a run that had ended; and ``identical``, how many runs came to the
        same weights, records and test NLL, bit for bit.

    Raises:
        TrainingError: when a run that was not killed fails.
    """
    table = _table(folder)
    whole = _trained(table, folder / "whole")
    started = time.monotonic()
    _trained(table, folder / "timed")  # now that processes start at once
    seconds = time.monotonic() - started
    found = {"kills": count, "before": 0, "writing": 0, "ended": 0, "identical": 0}
    for i, moment in enumerate(np.random.default_rng(seed).uniform(0, seconds, count)):
        run = folder / f"run-{i}"
        child = children.start(_typed(table, run), run.with_suffix(".log"))
        child.join(moment)
        child.kill()
        child.join()
        begun = (run / storage.CONFIG).exists()
        found["before"] += not begun
        found["writing"] += any(run.rglob("*.partial"))
        found["ended"] += (run / RESULT).exists()
        found["identical"] += same(_trained(table, run, resume=begun), whole)
    return found


def refuse(folder: Path) -> dict[str, Any]:
    """Continue a run where files cannot grow, as on a full disk, and again where they can.

    Returns:
        ``status``, that of the program; ``message``, what it said; ``identical``, whether the run came to the same in
        the end.
    """
    table = _table(folder)
    whole, run = _trained(table, folder / "whole"), folder / "run"
    child = children.start(_typed(table, run), run.with_suffix(".log"))
    while not (run / "state" / "latest").exists() and child.is_alive():
        time.sleep(0.01)
    child.kill()
    child.join()
    largest = max(path.stat().st_size for path in run.rglob("*") if path.is_file()) // 2
    log = run.with_suffix(".log")
    full = children.start(["density", "--resume", str(run)], log, largest=largest)
    full.join()
    message = log.read_text().strip().splitlines()[-1].replace(f"{folder}/", "")
    return {"status": full.exitcode, "message": message, "identical": same(_trained(table, run, resume=True), whole)}


def same(one: Ended, other: Ended) -> bool:
    """Whether two runs came to the same, bit for bit."""
    weights = one.weights.keys() == other.weights.keys() and all(
        torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items()
    )
    return weights and one.records == other.records and one.nll == other.nll


def _table(folder: Path) -> Path:
    path = folder / "table.csv"
    x = np.random.default_rng(0).normal(size=(600, 3)) @ np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 2]])
    np.savetxt(path, x, delimiter=",")
    return path


def _typed(table: Path, run: Path) -> list[str]:
    """A short training with noise in it, of both objectives."""
    often = ["--steps", str(STEPS), "--validate-every", str(OFTEN), "--likelihood-steps", "20", "--ema", "0.9"]
    small = ["--hidden", "16", "16", "--batch-size", "64", "--divergence", "hutchinson"]
    return ["density", str(table), *often, *small, "--objective", "flow-matching+likelihood", "--out", str(run)]


def _trained(table: Path, run: Path, resume: bool = False) -> Ended:
    """Train a run to its end, or what is left of it."""
    log = run.with_suffix(".log")
    typed = ["density", "--resume", str(run)] if resume else _typed(table, run)
    child = children.start(typed, log)
    child.join()
    if child.exitcode:
        raise TrainingError(f"{' '.join(typed)} failed: {log.read_text()[-500:]}")
    return ended(run)


def ended(folder: Path) -> Ended:
    """What the run of a folder came to."""
    records = [{k: v for k, v in record.items() if k not in TIMES} for record in Run(folder).records()]
    return Ended(storage.read_weights(folder), records, json.loads((folder / RESULT).read_text())["nll"])
