"""``train-flows evaluate RUN``: measure a stored density or classifier, how exactly, and at what cost."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro

import anode
import cnf
from anode import InputError, Solver, storage
from anode.classifiers import KIND as CLASSIFIER
from anode.resolving import solver_of
from cnf.models import KIND as DENSITY
from train_flows import accuracy, generative, held_out, likelihood, likelihood_table, processes, session
from train_flows.settings import Device, Flag, check_seed, find_device
from train_flows.supervised import suited_pairs
from train_flows.training import Precision


@dataclass(frozen=True)
class Settings:
    """Evaluate a stored model: likelihood of a density or accuracy of a classifier, and what they cost."""

    run: tyro.conf.Positional[str]  # folder of the run
    data: tyro.conf.Positional[str | None] = (
        None  # data set, table or folder of images; the test part of the run's own when omitted
    )
    rtol: float | None = None  # relative tolerance; the run's own when omitted
    atol: float | None = None  # absolute tolerance; the run's own when omitted
    divergence: Literal["exact", "hutchinson"] | None = None  # of a density; the run's own when omitted
    samples: int | None = None  # importance samples, for a density whose likelihood is a bound; up to 64 when omitted
    classify: Flag = False  # by the density given each class; for one that was trained with --conditional
    precision: Precision | None = None  # of a density, to see what it does to the NLL; that of training when omitted
    seed: int = 0  # of noise
    device: Device = "auto"
    json: Flag = False  # print one JSON object


def main(args: list[str]) -> None:
    """Run the command line ``train-flows evaluate``."""
    settings = tyro.cli(Settings, args=args, prog="train-flows evaluate")
    check_seed(settings.seed)
    kind = storage.read_config(settings.run, DENSITY, CLASSIFIER)["kind"]
    measure, table = MEASURES[kind]
    device = find_device(settings.device)
    processes.connect(device)
    report = measure(settings, device)
    print(json.dumps(report) if settings.json else table(report))


def _density(settings: Settings, device: torch.device) -> dict[str, Any]:
    model = cnf.load(settings.run, device)
    for ode in likelihood.odes(model):
        ode.divergence = settings.divergence or ode.divergence
    solver = _asked(settings, _adaptive(likelihood.odes(model)[0].solver))
    likelihood.check_importance_samples(model, settings.samples)
    x = held_out.samples(settings.run, settings.data)
    if settings.classify and not isinstance(x, tuple):
        raise InputError(f"--classify is for densities given the class, {settings.run} is given none: drop it")
    session.seed_noise(settings.seed)
    report = likelihood.measure(
        model, x, solver, settings.samples, settings.precision or held_out.precision(settings.run)
    )
    if settings.classify and isinstance(x, tuple):
        report["classifier"] = generative.measure(model.with_solver(solver), *x, report["nll"]["samples"] or 1)
    return report


def _density_table(report: dict[str, Any]) -> str:
    blocks = [likelihood_table.table(report)]
    if "classifier" in report:
        blocks.append(generative.table(report["classifier"]))
    return "\n".join(blocks)


def _classifier(settings: Settings, device: torch.device) -> dict[str, Any]:
    for name in ("divergence", "samples", "precision"):
        if getattr(settings, name) is not None:
            raise InputError(
                f"--{name} {getattr(settings, name)} is for densities, {settings.run} is a classifier: drop it"
            )
    if settings.classify:
        raise InputError(f"--classify is for densities, {settings.run} is a classifier: drop it")
    model = anode.load(settings.run, device)
    solver = solver_of(model)
    if settings.rtol is not None or settings.atol is not None:
        if solver is None or not solver.adaptive:
            raise InputError(
                f"--rtol and --atol have no effect on {settings.run}, which takes no adaptive steps: drop them"
            )
        model = anode.with_solver(model, _asked(settings, solver))
    pairs, classes = held_out.pairs(settings.run, settings.data)
    return accuracy.measure(model, suited_pairs(model, pairs), classes)


def _asked(settings: Settings, solver: Solver) -> Solver:
    """The solver with the tolerances that were typed."""
    asked = {name: getattr(settings, name) for name in ("rtol", "atol") if getattr(settings, name) is not None}
    return dataclasses.replace(solver, **asked)


def _adaptive(solver: Solver) -> Solver:
    """The solver if it is adaptive; else one whose tolerances mean something."""
    return solver if solver.adaptive else Solver(rtol=solver.rtol, atol=solver.atol, max_steps=solver.max_steps)


MEASURES: dict[str, tuple[Callable[[Settings, torch.device], dict[str, Any]], Callable[[dict[str, Any]], str]]] = {
    DENSITY: (_density, _density_table),
    CLASSIFIER: (_classifier, accuracy.table),
}
