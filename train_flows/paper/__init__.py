"""``train-flows paper EXPERIMENT``: the figures of the papers, each with every run behind it."""

from __future__ import annotations

import importlib
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

from anode import InputError, SolverError, storage
from train_flows.paper import trials
from train_flows.paper.report import AttemptAll
from train_flows.paper.trials import Outcome, Trial
from train_flows.provenance import provenance
from train_flows.settings import Flag

EXPERIMENTS = {
    "flow-1d": "ODE solutions on the line keep their order, ResNet steps cross (ANODE, fig. 3)",
    "resnet-vs-node": "training losses of ResNet and NODE in d = 1, 2 and on separable data (fig. 5)",
    "feature-evolution": "features while training, with their evaluations (fig. 6, 8 left)",
    "node-vs-anode": "training losses in d = 1, 2 and the flows learnt (fig. 7)",
    "nfe": "evaluations while training (fig. 8 right)",
    "generalization": "values at unseen inputs, validation loss with slices removed (fig. 9)",
    "augment-sweep": "loss, evaluations and time against the number of extra dimensions",
    "tolerance": "error, time, memory and evaluations against tolerance (Neural ODEs, fig. 3)",
}


@dataclass(frozen=True)
class Settings:
    """Reproduce a figure of a paper; without an experiment, list them."""

    experiment: tyro.conf.Positional[str | None] = None
    seeds: int = 5  # repetitions, with seeds from 0
    quick: Flag = False  # a minute at most, to see that it runs; its figures mean nothing
    out: Path = Path("paper")  # folder of EXPERIMENT.json and EXPERIMENT.png
    workers: int = os.cpu_count() or 1  # runs side by side, one thread each
    overwrite: Flag = False  # replace existing results


def main(args: list[str]) -> None:
    """Run the command line ``train-flows paper``."""
    settings = tyro.cli(Settings, args=args, prog="train-flows paper")
    if settings.experiment is None:
        print("\n".join(f"{name:<18} {what}" for name, what in EXPERIMENTS.items()))
        return
    results, picture = _checked(settings)
    torch.set_num_threads(1)  # as in the processes beside this one: more do not help networks of this size
    experiment = importlib.import_module(f"train_flows.paper.{settings.experiment.replace('-', '_')}")
    write = partial(_write, settings, results)
    settings.out.mkdir(parents=True, exist_ok=True)
    write(runs=[], complete=False)  # fails here, if anywhere
    picture.unlink(missing_ok=True)  # of other runs
    report = experiment.run(_attempting(settings, write))
    write(runs=report.runs, complete=True, findings=report.findings, summary=report.summary)
    print(f"\n{report.table}\n\n{results}")
    try:
        buffer = io.BytesIO()
        report.draw().savefig(buffer, dpi=110, format="png")
        storage.write_atomically(picture, buffer.getvalue())
        print(picture)
    except SolverError as error:
        print(f"note: the figure is missing: {error}")


def _checked(settings: Settings) -> tuple[Path, Path]:
    """The files to write, once everything typed is known to be good."""
    name = settings.experiment
    if name not in EXPERIMENTS:
        raise InputError(f"experiment {name!r} is unknown: choose one of {', '.join(EXPERIMENTS)}")
    for option in ("seeds", "workers"):
        if getattr(settings, option) < 1:
            raise InputError(f"--{option} {getattr(settings, option)} must be at least 1")
    if settings.out.exists() and not settings.out.is_dir():
        raise InputError(f"--out {settings.out} is a file: pass a folder")
    paths = settings.out / f"{name}.json", settings.out / f"{name}.png"
    for path in paths:
        if path.exists() and not settings.overwrite:
            raise InputError(f"{path} exists: pass another --out, or --overwrite")
    return paths


def _attempting(settings: Settings, write: Callable[..., None]) -> AttemptAll:
    """What experiments train with: the runs that are finished are on disk, whatever happens to the others."""
    finished: list[dict[str, Any]] = []

    def attempt_all(wanted: Sequence[Trial], seeds: Sequence[int] | None = None) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        wanted = trials.quick(wanted) if settings.quick else wanted
        for place, outcome in trials.attempt_each(wanted, seeds or range(settings.seeds), settings.workers):
            outcomes[place] = outcome
            finished.append(outcome.result())
            write(runs=finished, complete=False)
        return [outcomes[place] for place in sorted(outcomes)]

    return attempt_all


def _write(settings: Settings, path: Path, **content: Any) -> None:
    about = {
        "experiment": settings.experiment,
        "quick": settings.quick,
        "seeds": list(range(settings.seeds)),
        "workers": settings.workers,
    }
    storage.write_atomically(path, (json.dumps(_plain({**provenance(), **about, **content})) + "\n").encode())


def _plain(value: Any) -> Any:
    """The same, with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
