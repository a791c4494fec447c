"""A run folder, damaged and crafted, and what loading it comes to: what was stored, or a clean error."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cnf
from anode import CheckpointError
from cnf.models import KIND
from train_flows import command_line, comparison, data, density, held_out, report, session
from train_flows.benchmark.attempts import Tally, tally
from train_flows.benchmark.crafted_configs import CONFIGS
from train_flows.benchmark.crafted_files import FILES
from train_flows.benchmark.crafted_states import STATES
from train_flows.benchmark.damage import Bomb, damaged, one_of
from train_flows.checkpoint import Run
from train_flows.data import Dataset
from train_flows.loop import train
from train_flows.settings import Source
from train_flows.state import digest

CRAFTS = CONFIGS | FILES | STATES
CRAFTED = 0.4  # of the mutations; the others are damage
SPARSE = 2**35  # bytes of a file that is almost all hole


def mutate_runs(count: int, seed: int = 0) -> Tally:
    """Load so many mutated run folders; each has to be ``"unchanged"``, or ``"refused"`` in one line.

    What is loaded from a damaged folder has to be what was stored, whatever else of it is refused. A crafted one is
    refused as a whole where a part of it is.

    Args:
        count: how many mutations.
        seed: of the mutations.
    """
    return tally(Runs, count, seed)


class Runs:
    """A run, of which one or two files at a time are mutated.

    Whatever a user would load is loaded: the model, the configuration, the records and the state to resume from; and
    what ``evaluate``, ``report`` and ``density --resume`` make of them before they compute.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        _train(self.folder)
        self.contents = {path: path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}
        self.bomb = Bomb(folder / "executed")
        self.crafted = False
        self.whole = {name: load(self.folder) for name, load in LOADS.items()}

    def mutate(self, rng: np.random.Generator) -> str:
        """See :class:`~train_flows.benchmark.attempts.Subject`."""
        self._restore()
        self.crafted = rng.random() < CRAFTED
        if self.crafted:
            name = one_of(rng, CRAFTS)
            CRAFTS[name](self.folder, rng)
            return name
        path = one_of(rng, self.contents)
        name = self._damage(path, rng)
        return f"{path.relative_to(self.folder)} {name}"

    def read(self) -> str:
        """See :class:`~train_flows.benchmark.attempts.Subject`."""
        refused, others = False, []
        for name, load in LOADS.items():
            try:
                others += [name] if load(self.folder) != self.whole[name] else []
            except CheckpointError as error:
                if len(str(error).splitlines()) != 1:
                    raise RuntimeError(f"{name}: the message is not one line: {error}") from error
                refused = True
        self.bomb.check()
        if others and not (self.crafted and refused):
            raise RuntimeError(f"something else was loaded as {' and '.join(others)}")
        return "refused" if refused else "unchanged"

    def _restore(self) -> None:
        shutil.rmtree(self.folder)
        for path, content in self.contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def _damage(self, path: Path, rng: np.random.Generator) -> str:
        kind = rng.random()
        if kind < 0.8:
            name, content = damaged(self.contents[path], rng)
            path.write_bytes(content)
            return name
        path.unlink()
        if kind < 0.85:
            return "deleted"
        if kind < 0.88:
            path.mkdir()
            return "a folder"
        if kind < 0.91:
            path.write_bytes(self.contents[path])
            os.truncate(path, SPARSE)
            return "huge"
        if kind < 0.94:
            path.write_bytes(self.bomb.pickled())
            return "pickled"
        if kind < 0.96:
            buffer = io.BytesIO()
            torch.save({"step": 4, "bomb": self.bomb}, buffer)
            path.write_bytes(buffer.getvalue())
            return "pickled by torch"
        other = one_of(rng, [each for each in self.contents if each != path])
        path.write_bytes(self.contents[other])
        other.write_bytes(self.contents[path])
        return f"exchanged with {other.name}"


@cache
def _data(source: Source, seed: int) -> Dataset:
    """The data of a run, drawn once: it takes as long as all else that is read."""
    return data.load(**dataclasses.asdict(source), seed=seed)


def _train(folder: Path) -> None:
    """A short training, as ``train-flows density`` does it."""
    tiny = ["--hidden", "8", "8", "--steps", "4", "--validate-every", "2", "--batch-size", "64", "--ema", "0.9"]
    settings = density.parse(["moons", *tiny, "--out", str(folder), "--device", "cpu"])
    dataset = _data(settings.data, settings.run.of_data())
    trained = density.build(settings, dataset)
    model = trained.with_solver(settings.numerics.figures())
    what = density.task(settings, dataset, trained, model)
    run = session.open_run(settings, KIND, dataset, model)
    with contextlib.redirect_stdout(io.StringIO()):
        density.fit(settings, run, dataset, model, what)
    nll = {"value": 1.0, "standard_error": 0.1, "kind": model.kind}
    session.write_result(run, KIND, settings.run.seed, 1.0, {"nll": nll})


def _model(folder: Path) -> str:
    model = cnf.load(folder)
    return digest({"config": model.config, "weights": model.state_dict()})


def _state(folder: Path) -> str:
    state = Run(folder).load_state()
    if state is None:
        raise RuntimeError("training begins anew")
    return digest(state)


def _evaluated(folder: Path) -> str:
    """What ``train-flows evaluate`` reads besides the model."""
    return digest({"x": held_out.samples(str(folder), None), "precision": held_out.precision(str(folder))})


def _reported(folder: Path) -> comparison.Compared:
    """What ``train-flows report`` compares, but for the result: without a digest, any figure in it may be meant."""
    (run,) = comparison.read([str(folder)])
    report.as_text([run])
    report.as_json([run])
    return dataclasses.replace(run, result=None)


class _Resumed:
    """A journal that has the state of a run, and keeps what is to be stored of it next."""

    def __init__(self, folder: Path) -> None:
        self.run = Run(folder)
        self.state: dict[str, Any] = {}

    def log(self, record: dict[str, Any]) -> None:
        """Do nothing."""

    def load_state(self, device: torch.device | str) -> dict[str, Any] | None:
        """That of the run."""
        return self.run.load_state(device)

    def save_state(self, step: int, state: dict[str, Any]) -> None:
        """Keep what a training has made of it, but for its clock."""
        self.state = {name: value for name, value in state.items() if name != "seconds"}


def _resumed(folder: Path) -> str:
    """What ``train-flows density --resume`` goes on from: another step is to follow, and a stop is asked for before."""
    settings = command_line.stored(str(folder), density.Settings(), KIND, {})
    dataset = _data(settings.data, settings.run.of_data())
    trained = density.build(settings, dataset)
    what = density.task(settings, dataset, trained, trained)
    further, journal = dataclasses.replace(what.training, steps=what.training.steps + 1), _Resumed(folder)
    train(
        what.objective,
        further,
        what.batch,
        what.validate,
        lambda: None,
        journal,
        torch.device("cpu"),
        quiet=True,
        deadline=-math.inf,
    )
    return digest(journal.state)


LOADS: dict[str, Callable[[Path], Any]] = {
    "model": _model,
    "configuration": lambda folder: Run(folder).config(KIND),
    "records": lambda folder: Run(folder).records(),
    "state": _state,
    "evaluation": _evaluated,
    "report": _reported,
    "training": _resumed,
}
