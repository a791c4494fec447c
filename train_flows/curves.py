"""Pictures of records: arrays or plain values in, matplotlib figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Array = np.ndarray
Color = tuple[float, float, float, float]
STYLES = ("-", "--", ":")


def of_a_run(records: Sequence[dict[str, float]], panels: Mapping[str, Sequence[str]]) -> Figure:
    """Figures of the records against the step.

    Args:
        records: of a run.
        panels: for each panel, its label and the names of the figures in it.
    """
    figure = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for axes, (label, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in names:
            points = [(record["step"], record[name]) for record in records if name in record]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker=".")
        axes.set(xlabel="step", ylabel=label)
        axes.legend()
    return figure


def of_runs(
    runs: Mapping[str, Mapping[str, Array]],
    panels: Mapping[str, Mapping[str, str]],
    against: tuple[str, str],
    log: bool = False,
) -> Figure:
    """Figures of several runs against the step, and then one of them against another; a run has the same colour in all.

    Args:
        runs: names to figures by name, each (N,), NaN where there is none; among them ``"step"``.
        panels: for each panel, its label and the names of the figures in it, with what to call them, at most three.
        against: names of the abscissa and the ordinate of the last panel.
        log: whether the first of the panels and the last have a logarithmic ordinate.
    """
    figure = Figure(figsize=(4.5 * (len(panels) + 1), 4.2), layout="constrained")
    *over_steps, last = figure.subplots(1, len(panels) + 1)
    colors = dict(zip(runs, _colors(len(runs)), strict=True))
    called = {name: what for names in panels.values() for name, what in names.items()}
    for axes, (label, names) in zip(over_steps, panels.items(), strict=True):
        known = [name for name in names if any(np.isfinite(figures[name]).any() for figures in runs.values())]
        for style, name in zip(STYLES, known, strict=False):
            for run, figures in runs.items():
                _line(axes, figures["step"], figures[name], colors[run], style)
            axes.plot([], color="0.4", ls=style, label=names[name])
        axes.set(xlabel="step", ylabel=label)
        if known:
            axes.legend()
    x, y = against
    for run, figures in runs.items():
        _line(last, figures[x], figures[y], colors[run], end="o")
    last.set(xlabel=f"evaluations, {called[x]}", ylabel=called[y])
    last.set_title("large: the last record", fontsize="medium")
    for axes in (over_steps[0], last) if log else ():
        log_y(axes)
    handles = [Line2D([], [], color=color, marker=".", label=run) for run, color in colors.items()]
    columns = max(1, min(len(runs), 120 // (6 + max(map(len, runs)))))  # as many as fit in a line
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def _colors(count: int) -> list[Color]:
    """As many colours as can be told apart."""
    if count <= 10:
        return [matplotlib.colormaps["tab10"](i) for i in range(count)]
    return [matplotlib.colormaps["turbo"](x) for x in np.linspace(0.05, 0.95, count)]


def _line(axes: Axes, x: Array, y: Array, color: Color, style: str = "-", end: str = "") -> None:
    """A line through the points that are finite, with a marker at its end."""
    known = np.isfinite(x) & np.isfinite(y)
    axes.plot(x[known], y[known], marker=".", color=color, ls=style)
    axes.plot(x[known][-1:], y[known][-1:], marker=end, color=color)


def log_y(axes: Axes) -> None:
    """A logarithmic ordinate, where there is anything to show on it."""
    if np.isfinite(axes.dataLim.minposy):
        axes.set_yscale("log")
