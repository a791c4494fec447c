"""Depth of planar flows against width of continuous planar flows, fitted to unnormalised densities by reverse KL.

Chen et al. 2018, section 4.1: K layers of a discrete planar flow beside the ODE of M planar units. The discrete ones
take more steps of training, which are cheaper, at a learning rate of their own. A perceptron of 64-64 units as the
field shows what is left to gain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from train_flows import plots
from train_flows.data import targets
from train_flows.paper.outcomes import Outcome
from train_flows.paper.report import AttemptInSittings, Report, exemplar, mean, of, report
from train_flows.paper.variational_trials import VariationalTrial, attempt

__all__ = ["DATA", "attempt", "run"]

DATA = ("u1", "u2", "u3", "u4")
SIZES = (2, 8, 32)
PERCEPTRON = "CNF 64-64"


def run(attempt_all: AttemptInSittings, quick: bool, data: Sequence[str]) -> Report:
    """Fit flows of every size to every target."""
    trials = [trial for each in data for trial in _trials(each)]
    if quick:
        trials = [dataclasses.replace(trial, steps=4, batch_size=64, records=2) for trial in trials]
    outcomes = attempt_all(trials)
    return report(outcomes, partial(_figure, outcomes, data), _findings(outcomes, data))


def _trials(data: str) -> list[VariationalTrial]:
    targets.load(data)  # fails here where there is none
    return [
        *(VariationalTrial(f"NF K={k}", data, "planar", {"layers": k}, steps=6000) for k in SIZES),
        *(VariationalTrial(f"CNF M={m}", data, "planar field", {"units": m}, steps=3000, lr=2e-2) for m in SIZES),
        VariationalTrial(PERCEPTRON, data, "perceptron field", {"hidden": [64, 64]}, steps=4000),
    ]


def _findings(outcomes: Sequence[Outcome], data: Sequence[str]) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for each in data:
        known = targets.load(each).log_normalizer is not None
        what = "KL" if known else "negative bound of the log-evidence"
        findings |= {
            f"{each}: {what}, {name}": mean(of(outcomes, name, each), "kl")
            for name in (*(f"{kind}={n}" for n in SIZES for kind in ("NF K", "CNF M")), PERCEPTRON)
        }
    return findings


def _figure(outcomes: Sequence[Outcome], data: Sequence[str]) -> Figure:
    shown = (f"NF K={SIZES[-1]}", f"CNF M={SIZES[-1]}", PERCEPTRON)
    figure = Figure(figsize=(15, 2.9 * len(data)), layout="constrained")
    for row, each in zip(figure.subplots(len(data), 2 + len(shown), squeeze=False), data, strict=True):
        target = targets.load(each)
        _density(row[0], target)
        for axes, name in zip(row[1:], shown, strict=False):
            outcome = exemplar([o for o in of(outcomes, name, each) if o.samples])
            if outcome is not None:
                axes.plot(*np.array(outcome.samples).T[:2], ".", ms=2)
            half = target.half or 4
            axes.set(title=f"{each}: samples of {name}", xlim=(-half, half), ylim=(-half, half), xticks=[], yticks=[])
        for kind in ("NF K", "CNF M"):
            values = [mean(of(outcomes, f"{kind}={n}", each), "kl") for n in SIZES]
            row[-1].plot(SIZES, values, "o-", label=kind)
        row[-1].axhline(mean(of(outcomes, PERCEPTRON, each), "kl"), color="0.5", ls="--", label=PERCEPTRON)
        row[-1].set(title=f"{each}: KL to the target", xlabel="layers or units", xscale="log", yscale="log")
        row[-1].set_xticks(SIZES, SIZES)
        row[-1].xaxis.set_minor_locator(NullLocator())
        row[-1].legend()
    return figure


def _density(axes: Any, target: targets.Target) -> None:
    if target.half is None:
        axes.axis("off")
        return
    box = (-target.half, target.half, -target.half, target.half)
    points = torch.from_numpy(plots.grid(box, 120))
    density = target.log_density(points).exp().reshape(120, 120).numpy()
    axes.imshow(density, origin="lower", extent=box, cmap=plots.COLORS, aspect="auto")
    axes.set(title=f"{target.name}: target", xticks=[], yticks=[])
