"""Figure 8, right: the evaluations of NODE and ANODE while training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from train_flows.paper import pictures
from train_flows.paper.report import Report, curves, final, first, of, report
from train_flows.paper.trials import Outcome, Trial

TRIALS = [Trial("NODE", "spheres"), Trial("ANODE p=5", "spheres", {"extra": 5})]


def run(attempt_all: Callable[[Sequence[Trial]], list[Outcome]]) -> Report:
    """Train both on the concentric spheres; evaluations are means over the batches of an epoch."""
    outcomes = attempt_all(TRIALS)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    names = [trial.name for trial in TRIALS]
    nfe = {name: curves(of(outcomes, name), "nfe_forward") for name in names}
    losses = {name: curves(of(outcomes, name), "loss") for name in names}
    pictures.bands(left, nfe, "evaluations", "evaluations a solve")
    pictures.bands(middle, losses, "loss", "training loss", log=True)
    for i, name in enumerate(names):
        for cost, loss in zip(nfe[name], losses[name], strict=True):
            right.plot(cost, loss, color=f"C{i}", alpha=0.6, label=name if loss is losses[name][0] else None)
    right.set(yscale="log", xlabel="evaluations a solve", ylabel="training loss", title="loss against evaluations")
    return report(outcomes, figure, _findings(outcomes))


def _findings(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    node, anode = of(outcomes, "NODE"), of(outcomes, "ANODE p=5")

    def ratio(top: Any, bottom: Any) -> float:
        return float(top.mean() / bottom.mean())

    return {
        "loss, NODE / ANODE": ratio(final(node, "loss"), final(anode, "loss")),
        "NFE of the last epoch, ANODE / NODE": ratio(final(anode, "nfe_forward"), final(node, "nfe_forward")),
        "NFE of NODE, last / first epoch": ratio(final(node, "nfe_forward"), first(node, "nfe_forward")),
        "NFE of ANODE, last / first epoch": ratio(final(anode, "nfe_forward"), first(anode, "nfe_forward")),
        "seconds an epoch, NODE": float(final(node, "seconds").mean() / TRIALS[0].epochs),
        "seconds an epoch, ANODE": float(final(anode, "seconds").mean() / TRIALS[1].epochs),
    }
