"""Figure 5: losses of a neural ODE and a residual network on functions with and without a separating homeomorphism."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from train_flows.paper import pictures
from train_flows.paper.report import Report, curves, mean, of, report
from train_flows.paper.trials import Outcome, Trial

TITLES = {"intervals": "g in d = 1", "spheres": "g in d = 2", "sines": "separable"}
MODELS = {"NODE": {}, "ResNet": {"model": "resnet"}}
TRIALS = [
    Trial(name, data, model, lr=5e-4 if data == "intervals" else 1e-3)
    for data in TITLES
    for name, model in MODELS.items()
]

SMALL = 0.01  # of an initial loss about 0.5


def run(attempt_all: Callable[[Sequence[Trial]], list[Outcome]]) -> Report:
    """Train both on the nested intervals, the concentric spheres and the separable sines."""
    outcomes = attempt_all(TRIALS)
    findings: dict[str, Any] = {}
    for data in TITLES:
        runs = {name: of(outcomes, name, data) for name in MODELS}
        losses = [mean(each, "loss") for each in runs.values()]
        findings[f"training loss of NODE over that of ResNet, {data}"] = losses[0] / losses[1]
        until = [f"{name} {_epochs_until(curves(each, 'loss'))}" for name, each in runs.items()]
        findings[f"epochs until the mean loss is below {SMALL}, {data}"] = ", ".join(until)
    return report(outcomes, partial(_figure, outcomes), findings)


def _figure(outcomes: Sequence[Outcome]) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (data, title) in zip(figure.subplots(1, 3), TITLES.items(), strict=True):
        losses = {name: curves(of(outcomes, name, data), "loss") for name in MODELS}
        pictures.bands(axes, losses, title, "training loss", log=True)
    return figure


def _epochs_until(losses: np.ndarray) -> int | str:
    """The first epoch whose loss, averaged over all seeds, is small."""
    small = np.flatnonzero(losses.mean(axis=0) < SMALL)  # NaN, before training and after a failure, is not
    return int(small[0]) if len(small) else "never"
