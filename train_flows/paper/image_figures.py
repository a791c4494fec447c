"""Figures shared by the image experiments: a row for each set of images, one line a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train_flows.paper import pictures
from train_flows.paper.outcomes import Outcome
from train_flows.paper.report import curves, of

Panel = tuple[str, ...]  # a metric against the epoch, or two against each other

LABELS = {
    "loss": "training loss",
    "nfe_forward": "evaluations a solve",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
}
LOGARITHMIC = ("loss",)
FEW = 5  # models, whose names fit into every panel


def rows(outcomes: Sequence[Outcome], panels: Sequence[Panel], models: Sequence[str] = ()) -> Figure:
    """For each set of images its panels, with the mean over seeds and the range of all seeds.

    Args:
        outcomes: what to draw.
        panels: what of it.
        models: their names in the order of colours; by default that of the outcomes.
    """
    sets = list(dict.fromkeys(o.trial.data for o in outcomes))
    figure = Figure(figsize=(4.2 * len(panels), 3.4 * len(sets)), layout="constrained")
    for row, data in zip(figure.subplots(len(sets), len(panels), squeeze=False), sets, strict=True):
        names = dict.fromkeys([*models, *(o.trial.name for o in outcomes)])
        groups = {name: group for name in names if (group := of(outcomes, name, data))}
        for axes, panel in zip(row, panels, strict=True):
            if len(panel) == 2:
                _against(axes, groups, *panel)
            else:
                values = {name: curves(group, panel[0]) for name, group in groups.items()}
                for each in values.values():
                    each[:, 0] = np.nan  # before training, which would hide the rest
                pictures.bands(axes, values, "", LABELS[panel[0]], log=panel[0] in LOGARITHMIC)
            axes.set_title(data)
            if len(groups) > FEW and axes is not row[0]:  # which would cover the curves
                axes.get_legend().remove()
    return figure


def _against(axes: Axes, groups: dict[str, list[Outcome]], x: str, y: str) -> None:
    """One metric against another, epoch by epoch, both as means over seeds."""
    for name, group in groups.items():
        across, up = (_mean(curves(group, metric)) for metric in (x, y))
        axes.plot(across, up, ".-", lw=0.8, ms=4, label=name)
    axes.set(xlabel=LABELS[x], ylabel=LABELS[y])
    if y in LOGARITHMIC:
        pictures.log_y(axes)
    axes.legend()


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over seeds, of those that got so far; NaN where none did."""
    known = np.isfinite(values)
    return np.where(known.any(0), np.where(known, values, 0).sum(0) / known.sum(0).clip(1), np.nan)
