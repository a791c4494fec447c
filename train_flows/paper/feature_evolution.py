"""Figures 6 and 8, left: the features of concentric spheres while training, with the evaluations they cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure

from train_flows.paper import pictures
from train_flows.paper.report import AttemptAll, Report, exemplar, of, report
from train_flows.paper.trials import Trained, Trial, shown

EPOCHS = (0, 3, 6, 10, 20, 30)
TRIALS = [
    Trial("NODE", "spheres", snapshots=EPOCHS),
    Trial("ANODE p=1", "spheres", {"extra": 1}, snapshots=EPOCHS),
]


def run(attempt_all: AttemptAll) -> Report:
    """Train NODE and ANODE p=1, and draw the features of one seed at some epochs."""
    outcomes = attempt_all(TRIALS)
    return report(outcomes, partial(_figure, outcomes), {})


def _figure(outcomes: Sequence[Trained]) -> Figure:
    epochs = outcomes[0].trial.snapshots
    figure, axes = pictures.grid(len(TRIALS), len(epochs), solid_rows=(1,))
    for row, trial in zip(axes, TRIALS, strict=True):
        outcome = exemplar(of(outcomes, trial.name))
        if outcome is None:
            continue
        y = outcome.train.y[shown(outcome.train), 0].numpy()
        for panel, epoch in zip(row, epochs, strict=True):
            title = f"{trial.name}, epoch {epoch}\n{outcome.records[epoch]['nfe']:.0f} evaluations"
            pictures.points(panel, outcome.features[epoch].numpy(), y, title)
    return figure
