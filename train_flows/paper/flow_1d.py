"""Figure 3: the flow of an ODE on the line keeps the order of points, the steps of a residual network need not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from anode import ODEBlock
from train_flows.paper.report import AttemptAll, Report, exemplar, mean, of, report
from train_flows.paper.trials import Trained, Trial

BARE = {"readout": "none"}  # a learned readout would flip the sign by itself
TRIALS = [
    Trial(name, data, BARE | model, points=1000)
    for data in ("identity", "g1d")
    for name, model in (("NODE", {"extra": 0}), ("ANODE p=1", {"extra": 1}), ("ResNet", {"model": "resnet"}))
]
TIMES = np.linspace(0, 1, 51)
STARTS = np.array([-1.5, -1, -0.5, 0, 0.5, 1, 1.5])


def run(attempt_all: AttemptAll) -> Report:
    """Train on identity and g1d without a readout, and draw fields and trajectories of one seed."""
    outcomes = attempt_all(TRIALS)
    findings = {
        f"MSE of {name} on g1d (best monotone: 1)": mean(of(outcomes, name, "g1d"), "mse")
        for name in ("NODE", "ANODE p=1", "ResNet")
    }
    return report(outcomes, partial(_figure, outcomes), findings)


@torch.no_grad()
def _figure(outcomes: Sequence[Trained]) -> Figure:
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for row, data in zip(axes, ("identity", "g1d"), strict=True):
        for panel, name in zip(row, ("NODE", "ANODE p=1", "ResNet"), strict=True):
            outcome = exemplar(of(outcomes, name, data))
            if outcome is None:
                continue
            model: Any = outcome.model
            if name == "NODE":
                _arrows(panel, model.body)
            times = np.linspace(0, 1, 6) if name == "ResNet" else TIMES  # a line from block to block
            path = model.trajectory(torch.tensor(STARTS[:, None], dtype=torch.float32), times.tolist())[:, :, 0].numpy()
            for start, trajectory in zip(STARTS, path.T, strict=True):
                trained = abs(start) == 1
                panel.plot(
                    times, trajectory, color=f"C{0 if start < 0 else 3}" if trained else "0.6", lw=2 if trained else 1
                )
            targets = [-1, 1] if data == "identity" else [1, -1]
            panel.scatter([0, 0, 1, 1], [-1, 1, *targets], color=["C0", "C3"] * 2, zorder=3)
            what = "first component" if name == "ANODE p=1" else "blocks" if name == "ResNet" else "field"
            panel.set(title=f"{name} on {data} ({what})", ylim=(-2.2, 2.2))
        row[0].set_ylabel("x")
    for panel in axes[1]:
        panel.set_xlabel("t")
    return figure


def _arrows(axes: Any, block: ODEBlock) -> None:
    t, x = np.meshgrid(np.linspace(0.02, 0.98, 15), np.linspace(-2, 2, 15), indexing="ij")
    states = torch.tensor(x.reshape(-1, 1), dtype=torch.float32)
    slope = block.field(torch.tensor(t.ravel()), states).numpy().reshape(t.shape)
    axes.quiver(t, x, np.ones_like(t), slope, angles="xy", color="0.8", width=0.004, headwidth=4)
