"""``train-flows evaluate RUN``: the likelihood of a stored density, how exact it is, and what it costs."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

import cnf
from anode import InputError, Solver, storage
from cnf.models import KIND
from train_flows import data, likelihood
from train_flows.checkpoint import Run
from train_flows.data import tables
from train_flows.settings import Device, Flag, RunSettings, Source, check_seed, find_device


@dataclass(frozen=True)
class Settings:
    """Evaluate a stored density: NLL, its standard error, inverse error and evaluations of the field."""

    run: tyro.conf.Positional[str]  # folder of the run
    data: tyro.conf.Positional[str | None] = None  # data set or table; the test part of the run's own when omitted
    rtol: float | None = None  # relative tolerance; the run's own when omitted
    atol: float | None = None  # absolute tolerance; the run's own when omitted
    divergence: Literal["exact", "hutchinson"] | None = None  # the run's own when omitted
    samples: int = 64  # importance samples, for a model whose likelihood is a bound
    seed: int = 0  # of noise
    device: Device = "auto"
    json: Flag = False  # print one JSON object


def main(args: list[str]) -> None:
    """Run the command line ``train-flows evaluate``."""
    settings = tyro.cli(Settings, args=args, prog="train-flows evaluate")
    check_seed(settings.seed)
    device = find_device(settings.device)
    model = cnf.load(settings.run, device)
    for ode in likelihood.odes(model):
        ode.divergence = settings.divergence or ode.divergence
    asked = {name: getattr(settings, name) for name in ("rtol", "atol") if getattr(settings, name) is not None}
    solver = dataclasses.replace(_adaptive(likelihood.odes(model)[0].solver), **asked)
    x = _samples(settings).to(device)
    if x.is_floating_point():
        x = x.to(next(model.parameters()).dtype)
    torch.manual_seed(settings.seed)
    report = likelihood.measure(model, x, solver, settings.samples)
    print(json.dumps(report) if settings.json else likelihood.table(report))


def _adaptive(solver: Solver) -> Solver:
    """The solver if it is adaptive; else one whose tolerances mean something."""
    return solver if solver.adaptive else Solver(rtol=solver.rtol, atol=solver.atol, max_steps=solver.max_steps)


def _samples(settings: Settings) -> Tensor:
    if settings.data is None:
        return _own_test_part(settings.run)
    trained = _settings_of(settings.run)["data"]
    if trained["source"] in (settings.data, str(Path(settings.data).resolve())):
        return _own_test_part(settings.run)
    if trained["jitter"]:
        print(f"note: {settings.run} was trained on jittered data; {settings.data} is taken as it is", file=sys.stderr)
    return _other_data(settings.run, settings.data)


def _settings_of(folder: str) -> dict[str, Any]:
    """The settings of a run; the defaults for a model that was saved without one."""
    config = storage.read_config(folder, KIND)
    return config.get("settings", {"data": vars(Source()), "run": vars(RunSettings())})


def _own_test_part(folder: str) -> Tensor:
    config = Run(folder).config(KIND)
    dataset = data.load(**config["settings"]["data"], seed=config["settings"]["run"]["seed"])
    if dataset.digest() != config["data"]["sha256"]:
        raise InputError(
            f"{config['data']['name']} has changed since {folder} was trained on it, so its test part is not known: "
            "name the data to evaluate on"
        )
    return dataset.test


def _other_data(folder: str, source: str) -> Tensor:
    """Samples to evaluate on, their columns in the order of the run."""
    config = storage.read_config(folder, KIND)
    if source in data.NAMES:  # split as the run's own data were, so that the test part was not trained on
        settings = _settings_of(folder)
        options = settings["data"] | {"source": source, "jitter": False}
        dataset = data.load(**options, seed=settings["run"]["seed"])
        x, columns = dataset.test, dataset.columns
    else:
        values, columns = (tables.read_splits(source) or {}).get("test") or tables.read(source, least_rows=2)
        x = torch.from_numpy(values)
    shape = config["model"]["shape"]
    trained = tuple(config.get("columns", ()))
    if x[0].numel() != math.prod(shape):
        names = f" ({_some(trained)})" if trained else ""
        raise InputError(
            f"{source} has {x[0].numel()} columns, {folder} was trained on {math.prod(shape)}{names}: "
            "pass the same columns"
        )
    if _named(columns) and _named(trained):
        missing = [name for name in trained if name not in columns]
        if missing:
            raise InputError(
                f"{source} lacks the columns {_some(missing)} of {folder}; it has {_some(columns)}: rename them"
            )
        x = x.flatten(1)[:, [columns.index(name) for name in trained]]
    return x.reshape(len(x), *shape)


def _named(columns: tuple[str, ...]) -> bool:
    """Whether columns have names of their own, rather than x0, x1, ..."""
    return not all(re.fullmatch(r"x\d+", name) for name in columns)


def _some(names: Any) -> str:
    return ", ".join([*names[:8], *["..."] * (len(names) > 8)])
