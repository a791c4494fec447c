"""Figure 8, right: the evaluations of NODE and ANODE while training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from train_flows.paper import pictures
from train_flows.paper.report import AttemptAll, Report, curves, mean, of, report
from train_flows.paper.trials import Trained, Trial

TRIALS = [Trial("NODE", "spheres"), Trial("ANODE p=5", "spheres", {"extra": 5})]


def run(attempt_all: AttemptAll) -> Report:
    """Train both on the concentric spheres; evaluations are means over the batches of an epoch."""
    outcomes = attempt_all(TRIALS)
    return report(outcomes, partial(_figure, outcomes), _findings(outcomes))


def _figure(outcomes: Sequence[Trained]) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    names = [trial.name for trial in TRIALS]
    nfe = {name: curves(of(outcomes, name), "nfe_forward") for name in names}
    losses = {name: curves(of(outcomes, name), "loss") for name in names}
    pictures.bands(left, nfe, "evaluations", "evaluations a solve")
    pictures.bands(middle, losses, "loss", "training loss", log=True)
    for i, name in enumerate(names):
        for seed, (cost, loss) in enumerate(zip(nfe[name], losses[name], strict=True)):
            right.plot(cost, loss, color=f"C{i}", alpha=0.6, label=None if seed else name)
    right.legend()
    pictures.log_y(right)
    right.set(xlabel="evaluations a solve", ylabel="training loss", title="loss against evaluations")
    return figure


def _findings(outcomes: Sequence[Trained]) -> dict[str, Any]:
    node, anode = of(outcomes, "NODE"), of(outcomes, "ANODE p=5")
    cost = "nfe_forward"
    return {
        "loss, NODE / ANODE": mean(node, "loss") / mean(anode, "loss"),
        "NFE of the last epoch, ANODE / NODE": mean(anode, cost) / mean(node, cost),
        "NFE of NODE, last / first epoch": mean(node, cost) / mean(node, cost, epoch=1),
        "NFE of ANODE, last / first epoch": mean(anode, cost) / mean(anode, cost, epoch=1),
        "seconds an epoch, NODE": mean(node, "seconds") / node[0].trial.epochs,
        "seconds an epoch, ANODE": mean(anode, "seconds") / anode[0].trial.epochs,
    }
