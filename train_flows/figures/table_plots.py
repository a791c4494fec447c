"""Figures of tables: marginals and pairs of the columns; arrays in, matplotlib figures out; no model is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy.stats import norm, rankdata

from train_flows.figures import plots

Array = np.ndarray
MANY, PAIRS = 7, 3  # columns that are all shown; pairs of more columns
POINTS = 1000  # of a set in a panel, at most
MARKERS = ("o", "x")  # of the sets, which differ also in a print in gray
TURNS = 4
INCHES = 1.7  # side of a panel


def corner(sets: Mapping[str, Array], columns: Sequence[str]) -> Figure:
    """Draw sets of points (N, D) over each other: pairs of columns below the diagonal, marginals on it.

    Of more than seven columns, the six of :func:`dependent_pairs` of the first set are shown, which the figure says.

    Args:
        sets: titles to points; at most two sets.
        columns: names of the D columns.
    """
    first = next(iter(sets.values()))
    shown = np.arange(first.shape[1])
    if len(shown) > MANY:
        shown = np.sort(dependent_pairs(first).ravel())
    points = [x[:, shown].astype(float) for x in sets.values()]
    low, high = plots.limits(points[0])
    side = INCHES * len(shown) + 1
    figure = Figure(figsize=(side, side + 0.5), layout="constrained")
    panels = figure.subplots(len(shown), len(shown), squeeze=False)
    for (i, j), axes in np.ndenumerate(panels):
        if i < j:
            axes.remove()
            continue
        if i == j:
            plots.marginals(axes, [x[:, i] for x in points], low[i], high[i])
            axes.set_yticks([])
        else:
            _scatter(axes, [x[:, [j, i]] for x in points])
            axes.set_ylim(low[i], high[i])
            axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlim(low[j], high[j])
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.ticklabel_format(scilimits=(-3, 5), axis="x" if i == j else "both")
        axes.tick_params(labelsize="small", labelbottom=i == len(shown) - 1, labelleft=j == 0 < i)
        axes.xaxis.offsetText.set_visible(False)  # it is part of the label
        axes.yaxis.offsetText.set(size="small", visible=j == 0 < i)
        if j == 0:
            axes.set_ylabel(plots.axis_label(columns[shown[i]]))
        if i == len(shown) - 1:
            axes.set_xlabel(f"{plots.axis_label(columns[shown[j]])}\n{_unit(axes)}".rstrip())
    figure.align_labels()
    notes = []
    if len(shown) < first.shape[1]:
        notes.append(f"{len(shown)} of {first.shape[1]} columns: the {PAIRS} pairs that depend most on each other")
    if len(first) > POINTS and len(shown) > 1:
        notes.append(f"{POINTS:,} points of each in the panels of pairs")
    handles = [
        Line2D([], [], ls="", marker=marker, color=color, label=f"{title} ({len(x):,})")
        for marker, color, (title, x) in zip(MARKERS, plots.LINE_COLORS, sets.items(), strict=False)
    ]
    title = "\n".join(notes)
    figure.legend(handles=handles, loc="outside upper center", ncols=len(sets), title=title, frameon=False)
    return figure


def samples(x: Array, columns: Sequence[str]) -> Figure:
    """Draw samples alone: numbers (N, 1) as a histogram, points (N, 2) in the plane, others (N, D) as a corner plot."""
    if x.shape[1] != 2:
        return corner({"samples": x}, columns)
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    plots.cloud(axes, x, plots.extent(x))
    axes.set(xlabel=plots.axis_label(columns[0], 40), ylabel=plots.axis_label(columns[1], 40))
    axes.set_title(f"{len(x):,} samples")
    return figure


def dependent_pairs(x: Array) -> Array:
    """Return three disjoint pairs (3, 2) of columns of x (N, D) that depend most on each other, the strongest first.

    The strength of a pair is the largest correlation, in absolute value, between the normal scores of one column or
    their squares and those of the other, so that a parabola counts like a line; D is at least 6.
    """
    scores = norm.ppf(rankdata(x, axis=0) / (len(x) + 1))
    scores = np.concatenate([scores, scores**2], axis=1)
    scores -= scores.mean(axis=0)
    scores /= np.maximum(np.linalg.norm(scores, axis=0), np.finfo(float).tiny)
    d = x.shape[1]
    strength = np.abs(scores.T @ scores).reshape(2, d, 2, d).max(axis=(0, 2))
    pairs = []
    for _ in range(PAIRS):
        np.fill_diagonal(strength, -1)
        pairs.append(np.unravel_index(strength.argmax(), strength.shape))
        strength[pairs[-1], :] = strength[:, pairs[-1]] = -2
    return np.array(pairs)


def _scatter(axes: Axes, sets: Sequence[Array]) -> None:
    """Scatter sets (N, 2), each with its colour and marker, in turns so that none hides the other."""
    for turn in range(TURNS):
        for x, color, marker in zip(sets, plots.LINE_COLORS, MARKERS, strict=False):
            size, part = plots.marker_size(min(len(x), POINTS)), x[turn:POINTS:TURNS]
            width = 0 if marker == "o" else 0.25 * size**0.5
            axes.scatter(*part.T, s=size, marker=marker, color=color, alpha=0.7, lw=width, rasterized=True)


def _unit(axes: Axes) -> str:
    """Return the factor and the offset that the numbers below a panel lack, such as 1e5+1.7e9."""
    formatter = axes.xaxis.get_major_formatter()
    formatter.set_locs(axes.xaxis.get_majorticklocs().tolist())
    return f"({offset})" if (offset := formatter.get_offset()) else ""
