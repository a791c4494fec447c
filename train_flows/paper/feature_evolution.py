"""Figures 6 and 8, left: the features of concentric spheres while training, with the evaluations they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from train_flows.paper import pictures
from train_flows.paper.report import Report, report
from train_flows.paper.trials import Outcome, Trial, shown

EPOCHS = (0, 3, 6, 10, 20, 30)
TRIALS = [
    Trial("NODE", "spheres", snapshots=EPOCHS),
    Trial("ANODE p=1", "spheres", {"extra": 1}, snapshots=EPOCHS),
]


def run(attempt_all: Callable[[Sequence[Trial]], list[Outcome]]) -> Report:
    """Train NODE and ANODE p=1, and draw the features of the first seed at some epochs."""
    outcomes = attempt_all(TRIALS)
    drawn = [outcome for outcome in outcomes if outcome.seed == 0]
    epochs = drawn[0].trial.snapshots
    figure, axes = pictures.grid(len(drawn), len(epochs), solid_rows=(1,))
    for row, outcome in zip(axes, drawn, strict=True):
        y = outcome.train.y[shown(outcome.train), 0].numpy()
        for panel, epoch in zip(row, epochs, strict=True):
            if epoch in outcome.features:  # until a failure
                nfe = outcome.records[epoch]["nfe"]
                title = f"{outcome.trial.name}, epoch {epoch}\n{nfe:.0f} evaluations"
                pictures.points(panel, outcome.features[epoch].numpy(), y, title)
    return report(outcomes, figure)
