"""Figure 7: losses of NODE and ANODE on g in one and two dimensions, and the flows they learn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from train_flows.paper import pictures
from train_flows.paper.report import AttemptAll, Report, curves, exemplar, mean, of, report
from train_flows.paper.trials import Trained, Trial, shown

TRIALS = [
    Trial("NODE", "intervals", lr=5e-4),
    Trial("ANODE p=1", "intervals", {"extra": 1}, lr=5e-4),
    Trial("NODE", "spheres"),
    Trial("ANODE p=1", "spheres", {"extra": 1}),
    Trial("ANODE p=5", "spheres", {"extra": 5}),
]
DRAWN = 100  # trajectories


def run(attempt_all: AttemptAll) -> Report:
    """Train on both functions; draw losses over all seeds, and inputs, flow and features of one."""
    outcomes = attempt_all(TRIALS)
    return report(outcomes, partial(_figure, outcomes), _findings(outcomes))


def _figure(outcomes: Sequence[Trained]) -> Figure:
    figure, axes = pictures.grid(2, 4, size=3)
    for row, (data, title) in zip(axes, (("intervals", "g in d = 1"), ("spheres", "g in d = 2")), strict=True):
        names = [trial.name for trial in TRIALS if trial.data == data]
        losses = {name: curves(of(outcomes, name, data), "loss") for name in names}
        pictures.bands(row[0], losses, title, "training loss", log=True)
    for i, name in enumerate(("NODE", "ANODE p=1")):
        for panel in axes[i][1:]:
            panel.remove()
        solid = "3d" if name != "NODE" else None
        panels = [figure.add_subplot(2, 4, 4 * i + j, projection=solid) for j in (2, 3, 4)]
        _draw(panels, exemplar(of(outcomes, name, "spheres")))
    return figure


def _findings(outcomes: Sequence[Trained]) -> dict[str, Any]:
    line, plane = of(outcomes, data="intervals"), of(outcomes, data="spheres")
    return {
        "MSE of NODE on the intervals (best monotone: 2/3)": mean(of(line, "NODE"), "mse"),
        "MSE of ANODE p=1 on the intervals": mean(of(line, "ANODE p=1"), "mse"),
        "loss of NODE over that of ANODE p=5, spheres": mean(of(plane, "NODE"), "loss")
        / mean(of(plane, "ANODE p=5"), "loss"),
    }


@torch.no_grad()
def _draw(panels: Sequence[Any], outcome: Trained | None) -> None:
    if outcome is None:
        return
    every = shown(outcome.train)
    x, y = outcome.train.x[every], outcome.train.y[every, 0].numpy()
    path = outcome.model.trajectory(x, np.linspace(0, 1, 41).tolist()).numpy()
    name = f"{outcome.trial.name}, d = 2"
    pictures.points(panels[0], path[0], y, f"{name}: inputs")
    some = slice(None, None, max(1, len(y) // DRAWN))
    pictures.paths(panels[1], path[:, some], y[some])
    panels[1].set_title(f"{name}: flow", fontsize="medium")
    pictures.points(panels[2], path[-1], y, f"{name}: features")
