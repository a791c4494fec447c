"""``train-flows evaluate RUN``: measure a stored density or classifier, how exact the figures are, and their cost."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

import torch

import anode
import cnf
from anode import InputError, Solver, storage
from anode.classifiers import KIND as CLASSIFIER
from anode.errors import config
from anode.solver import solvers_in
from cnf import Density
from cnf.models import KIND as DENSITY
from train_flows.command_line import read
from train_flows.evaluation import accuracy, held_out, likelihood, wording
from train_flows.run import distributed, session
from train_flows.settings import Precision, Seed


@config
class Settings:
    """Evaluate a stored model: the likelihood of a density or the accuracy of a classifier, and their cost.

    Attributes:
        run: folder of the run
        data: data set, table or folder of images; the run's own test part if omitted
        rtol: relative tolerance; that of the run if omitted
        atol: absolute tolerance; that of the run if omitted
        divergence: divergence of a density; that of the run if omitted
        samples: importance samples of a density whose likelihood is a bound; up to 64 if omitted
        classify: classify by the density given each class, for a run with --conditional
        precision: precision of the fields of a density, to see its effect on the NLL; that of training if omitted
        seed: seed of the noise
        device: cpu, cuda, cuda:1 or mps; auto takes a CUDA GPU if there is one
        json: print one JSON object
    """

    run: str
    data: str | None = None
    rtol: float | None = None
    atol: float | None = None
    divergence: Literal["exact", "hutchinson"] | None = None
    samples: int | None = None
    classify: bool = False
    precision: Precision | None = None
    seed: Seed = 0
    device: str = "auto"
    json: bool = False


def main(args: list[str]) -> None:
    """Run the command line ``train-flows evaluate``."""
    settings = read(Settings, args, "evaluate", run="RUN", data="DATA")
    stored = storage.read_config(settings.run, DENSITY, CLASSIFIER)
    device = session.find_device(settings.device)
    distributed.connect(device)
    if stored["kind"] == CLASSIFIER:
        figures = _classifier(settings, device)
        said = wording.accuracy_table(figures)
    else:
        figures = _density(settings, device, stored)
        said = wording.likelihood_table(figures)
        if settings.classify:
            said += "\n" + wording.density_table(figures["classifier"])
    print(json.dumps(figures) if settings.json else said)


def _density(settings: Settings, device: torch.device, stored: dict[str, Any]) -> dict[str, Any]:
    model = cnf.load(settings.run, device)
    assert isinstance(model, Density), "of that kind"
    for ode in likelihood.odes(model):
        ode.divergence = settings.divergence or ode.divergence
    solver = solvers_in(model)[0]
    if not solver.adaptive:  # whose tolerances mean nothing
        solver = Solver(rtol=solver.rtol, atol=solver.atol, max_steps=solver.max_steps)
    solver = _with_tolerances(settings, solver)
    likelihood.check_importance_samples(model, settings.samples)
    dataset = held_out.load(settings.run, settings.data)
    if settings.classify and not (dataset.context and dataset.context == dataset.classes):
        raise InputError(f"--classify is for densities given the class, {settings.run} is given none: omit it")
    distributed.seed_noise(settings.seed)
    trained = stored.get("settings", {}).get("training", {}).get("precision", "float32")
    figures = likelihood.measure(model, dataset.test, solver, settings.samples, settings.precision or trained)
    if settings.classify:
        samples = figures["nll"]["samples"] or 1
        figures["classifier"] = accuracy.measure_density(model.with_solver(solver), dataset.test, samples)
    return figures


def _classifier(settings: Settings, device: torch.device) -> dict[str, Any]:
    for name in ("divergence", "samples", "precision", "classify"):
        value = getattr(settings, name)
        if value not in (None, False):
            typed = f"--{name}" if value is True else f"--{name} {value}"
            raise InputError(f"{typed} is for densities, {settings.run} is a classifier: omit it")
    model = anode.load(settings.run, device)
    if settings.rtol is not None or settings.atol is not None:
        solver = next(iter(solvers_in(model)), None)
        if solver is None or not solver.adaptive:
            raise InputError(
                f"--rtol and --atol have no effect on {settings.run}, which takes no adaptive steps: drop them"
            )
        model = model.with_solver(_with_tolerances(settings, solver))
    dataset = held_out.load(settings.run, settings.data)
    return accuracy.measure(model, dataset.test)


def _with_tolerances(settings: Settings, solver: Solver) -> Solver:
    typed = {name: getattr(settings, name) for name in ("rtol", "atol") if getattr(settings, name) is not None}
    return dataclasses.replace(solver, **typed)
