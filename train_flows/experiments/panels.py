"""Panels of a figure: one measured value by epoch, or one against another, for every label of an experiment."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train_flows.experiments.results import Results
from train_flows.figures import plots

LABELS = {
    "loss": "training loss",
    "validation_loss": "validation loss",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
    "nll": "validation NLL in nats",
    "nll_test": "test NLL in nats",
    "test_nll": "test NLL in nats",
    "nfe_forward": "evaluations per solve",
    "nfe_log_prob": "evaluations of log_prob",
    "nfe_sample": "evaluations of sampling",
    "nfe_sample_1e-07": "evaluations of sampling, 1e-7",
    "w2": "W2 distance from test points",
    "w2_euler": "W2 at one Euler step",
    "seconds": "seconds of training",
    "step": "training step",
}
LOGARITHMIC = ("loss", "validation_loss")
MAX_LABELS = 5  # of which every panel has a legend; with more, the first panel of a row has it
Panel = Callable[[Axes, Results], None]


def draw_panels(results: Results, *panels: Panel) -> Figure:
    """Draw a row of panels for each data set; with one data set or one panel, rows of up to four."""
    sets, count = results.data, len(results.data) * len(panels)
    rows = len(sets) if 1 < len(panels) < count else math.ceil(count / 4)
    columns = math.ceil(count / rows)
    figure = Figure(figsize=(4.2 * columns, 3.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in grid[count:]:
        unused.remove()
    for row, data in zip(grid[:count].reshape(len(sets), -1), sets, strict=True):
        for axes, panel in zip(row, panels, strict=True):
            panel(axes, results.of(data=data))
            axes.set_title(": ".join(filter(None, (data, axes.get_title()))))
            labels = axes.get_legend_handles_labels()[1]
            if labels and (axes is row[0] or len(labels) <= MAX_LABELS):
                axes.legend(fontsize="small")
            elif legend := axes.get_legend():
                legend.remove()
    return figure


def by_epoch(metric: str) -> Panel:
    """Return a panel with mean and range over the seeds, from the first epoch on."""

    def draw(axes: Axes, results: Results) -> None:
        curves = {label: results.of(label).curves(metric) for label in results.labels}
        for values in curves.values():
            values[:, :1] = np.nan  # before training, which would hide the rest
        plots.bands(axes, curves, "", LABELS[metric], metric in LOGARITHMIC)

    return draw


def against(x: str, y: str, marker: str = "-", mean: bool = False) -> Panel:
    """Return a panel with a line for each run from its second record on, or for the mean of each label over seeds."""

    def draw(axes: Axes, results: Results) -> None:
        for label, color in _colored(results):
            lines = [results.of(label).curves(metric)[:, 1:] for metric in (x, y)]
            if mean:
                lines = [np.ma.masked_invalid(values).mean(0).filled(np.nan)[None] for values in lines]
            for i, (across, up) in enumerate(zip(*lines, strict=True)):
                axes.plot(across, up, marker, ms=4, lw=1, color=color, alpha=0.7, label=None if i else label)
        _set_axes(axes, x, y)

    return draw


def ends_against(x: str, y: str) -> Panel:
    """Return a panel with a point for the last record of each successful run."""

    def draw(axes: Axes, results: Results) -> None:
        for label, color in _colored(results):
            group = results.of(label)
            axes.plot(group.last(x), group.last(y), "o", color=color, alpha=0.7, label=label)
        _set_axes(axes, x, y)

    return draw


def _colored(results: Results) -> list[tuple[str, str]]:
    return list(zip(results.labels, plots.line_colors(len(results.labels)), strict=True))


def _set_axes(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=LABELS[x], ylabel=LABELS[y], xscale="log" if x == "seconds" else "linear")
    if y in LOGARITHMIC:
        plots.log_y(axes)
