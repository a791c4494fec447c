"""How many dimensions to augment by: loss, evaluations and time from none to a hundred."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure

from train_flows.paper import pictures
from train_flows.paper.report import AttemptAll, Report, at_epoch, of, report
from train_flows.paper.trials import Trained, Trial

EXTRAS = (0, 1, 2, 5, 10, 20, 50, 100)
TRIALS = [Trial(f"p={extra}", "spheres", {"extra": extra}) for extra in EXTRAS]
METRICS = {"loss": "training loss", "nfe_forward": "evaluations a solve", "seconds": "seconds to train"}


def run(attempt_all: AttemptAll) -> Report:
    """Train on the concentric spheres with every number of extra dimensions."""
    outcomes = attempt_all(TRIALS)
    return report(outcomes, partial(_figure, outcomes), {})


def _figure(outcomes: Sequence[Trained]) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(1, 3), METRICS.items(), strict=True):
        values = [at_epoch(of(outcomes, trial.name), metric) for trial in TRIALS]
        for i, each in enumerate(values):
            axes.scatter([i] * len(each), each, color="C0", s=12, alpha=0.5)
        axes.plot([each.mean() if len(each) else float("nan") for each in values], color="C0")
        axes.set(xlabel="extra dimensions p", ylabel=label, xticks=range(len(EXTRAS)), xticklabels=EXTRAS)
        if metric == "loss":
            pictures.log_y(axes)
    return figure
