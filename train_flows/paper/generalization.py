"""Figure 9: what NODE and ANODE make of inputs they were not trained on, at nearly no training loss."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

from train_flows.paper import pictures
from train_flows.paper.report import AttemptAll, Report, curves, exemplar, mean, of, report
from train_flows.paper.trials import Trained, Trial

MODELS = {"NODE": {}, "ANODE p=5": {"extra": 5}}
TRIALS = [Trial(name, "spheres", model, epochs=50, removed=3) for name, model in MODELS.items()]
SIDE = 120  # of the grid of inputs


def run(attempt_all: AttemptAll) -> Report:
    """Train with three of ten slices of the plane removed, random ones for each seed, and validate on those."""
    outcomes = attempt_all(TRIALS)
    node, anode = (mean(of(outcomes, name), "validation_loss") for name in MODELS)
    return report(outcomes, partial(_figure, outcomes), {"validation loss, ANODE / NODE": anode / node})


@torch.no_grad()
def _figure(outcomes: Sequence[Trained]) -> Figure:
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    *maps, train, validation = figure.subplots(1, 4)
    for axes, name in zip(maps, MODELS, strict=True):
        _values(axes, exemplar(of(outcomes, name)))
    for axes, metric in ((train, "loss"), (validation, "validation_loss")):
        losses = {name: curves(of(outcomes, name), metric) for name in MODELS}
        pictures.bands(axes, losses, metric.replace("_", " "), log=True)
    return figure


def _values(axes: Any, outcome: Trained | None) -> None:
    """The network's value at every input, with the points it learnt from."""
    if outcome is None:
        return
    side = torch.linspace(-1.6, 1.6, SIDE)
    inputs = torch.cartesian_prod(side, side)
    values = outcome.model(inputs).reshape(SIDE, SIDE).T.numpy()
    axes.imshow(values, origin="lower", extent=(-1.6, 1.6, -1.6, 1.6), cmap=pictures.SIDES, vmin=-1, vmax=1)
    x = outcome.train.x[::10].numpy()
    axes.scatter(*x.T, s=1, c="black", lw=0)
    axes.set(title=f"{outcome.trial.name}: value at every input", xticks=[], yticks=[])
