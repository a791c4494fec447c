"""Figure 5: losses of a neural ODE and a residual network on functions with and without a separating homeomorphism."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from train_flows.paper import pictures
from train_flows.paper.report import AttemptAll, Report, curves, mean, of, report
from train_flows.paper.trials import Trained, Trial

TITLES = {"intervals": "g in d = 1", "spheres": "g in d = 2", "sines": "separable"}
MODELS: dict[str, dict[str, Any]] = {"NODE": {}, "ResNet": {"model": "resnet"}}
TRIALS = [
    Trial(name, data, model, lr=5e-4 if data == "intervals" else 1e-3)
    for data in TITLES
    for name, model in MODELS.items()
]
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # learning rates to choose from on the sines
TUNING_SEEDS = (100, 101)  # others than the reported ones, of which there are fewer
SMALL = 0.01  # of an initial loss about 0.5


def run(attempt_all: AttemptAll) -> Report:
    """Train both on the nested intervals, the concentric spheres and the separable sines.

    On the sines, which both can represent, also with the learning rate that suits each best.
    """
    tuning = {name: _tuning(attempt_all, name) for name in MODELS}
    best = {name: min(RATES, key=lambda lr, name=name: _loss_at(tuning[name], lr)) for name in MODELS}
    tuned = [Trial(f"{name}, tuned", "sines", MODELS[name], lr=lr) for name, lr in best.items()]
    outcomes = attempt_all([*TRIALS, *tuned])
    done = report(outcomes, partial(_figure, outcomes), _findings(outcomes, best))
    return dataclasses.replace(done, runs=[*done.runs, *(o.result() for each in tuning.values() for o in each)])


def _tuning(attempt_all: AttemptAll, name: str) -> list[Trained]:
    trials = [Trial(f"{name}, lr {lr:g}", "sines", MODELS[name], lr=lr) for lr in RATES]
    return attempt_all(trials, TUNING_SEEDS)


def _loss_at(outcomes: Sequence[Trained], lr: float) -> float:
    """The mean loss of a learning rate; infinite where a seed failed."""
    at = [o for o in outcomes if o.trial.lr == lr]
    return mean(at, "loss") if all(o.status == "success" for o in at) else math.inf


def _findings(outcomes: Sequence[Trained], best: Mapping[str, float]) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for data in TITLES:
        runs = {name: of(outcomes, name, data) for name in MODELS}
        findings[f"training loss of NODE over that of ResNet, {data}"] = _ratio(*runs.values())
        until = [f"{name} {_epochs_until(each)}" for name, each in runs.items()]
        findings[f"epochs until the mean loss is below {SMALL}, {data}"] = ", ".join(until)
    tuned = [of(outcomes, f"{name}, tuned") for name in MODELS]
    findings["training loss of NODE over that of ResNet, sines, tuned"] = _ratio(*tuned)
    rates = [f"{name} {lr:g}" for name, lr in best.items()]
    findings[f"tuned learning rates, of {', '.join(f'{lr:g}' for lr in RATES)}"] = ", ".join(rates)
    return findings


def _ratio(node: Sequence[Trained], resnet: Sequence[Trained]) -> float:
    return mean(node, "loss") / mean(resnet, "loss")


def _figure(outcomes: Sequence[Trained]) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (data, title) in zip(figure.subplots(1, 3), TITLES.items(), strict=True):
        names = dict.fromkeys(o.trial.name for o in outcomes if o.trial.data == data)
        losses = {name: curves(of(outcomes, name, data), "loss") for name in names}
        pictures.bands(axes, losses, title, "training loss", log=True)
    return figure


def _epochs_until(outcomes: Sequence[Trained]) -> int | str:
    """The first epoch whose loss, averaged over the seeds that succeeded, is small."""
    succeeded = [o for o in outcomes if o.status == "success"]
    small = np.flatnonzero(curves(succeeded, "loss").mean(axis=0) < SMALL) if succeeded else []
    return int(small[0]) if len(small) else "never"
