"""Figures of samples, features and training records: arrays in, matplotlib figures out; no model is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Array = np.ndarray
Box = tuple[float, float, float, float]  # left, right, bottom, top
DENSITY_COLORS = "magma"  # brightness grows with the density, so that a print in gray shows it too
LINE_COLORS = ("#0072B2", "#E69F00", "#000000", "#D55E00", "#56B4E9", "#009E73", "#CC79A7")  # of Okabe and Ito
LINE_STYLES = ("-", "--", ":", "-.")
BINS = 100


def line_colors(count: int) -> list[Any]:
    """Return `count` distinct colours, which remain distinct for readers who confuse red and green."""
    if count <= len(LINE_COLORS):
        return list(LINE_COLORS[:count])
    return [matplotlib.colormaps["viridis"](x) for x in np.linspace(0, 0.9, count)]


# Samples in two and more dimensions


def extent(x: Array) -> Box:
    """Return the edges of a rectangle that shows nearly all points (N, 2), with a margin."""
    low, high = np.quantile(x, [0.001, 0.999], axis=0)
    center, half = (low + high) / 2, 0.575 * (high - low)
    left, bottom = center - half
    right, top = center + half
    return float(left), float(right), float(bottom), float(top)


def grid(box: Box, size: int = 160) -> Array:
    """Return the midpoints (size * size, 2) of the cells of a box, row by row from the bottom."""
    left, right, bottom, top = box
    middle = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(left + middle * (right - left), bottom + middle * (top - bottom))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def density_2d(data: Array, log_density: Array, samples: Array, columns: Sequence[str] = ("x", "y")) -> Figure:
    """Draw data, density and samples in three panels.

    Args:
        data: points (N, 2).
        log_density: of the points of ``grid(extent(data))``, (size * size,), in nats.
        samples: points (M, 2).
        columns: names of the axes.
    """
    box = extent(data)
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharex=True, sharey=True)
    size = round(np.sqrt(len(log_density)))
    _histogram(left, data, box)
    values = np.exp(log_density).reshape(size, size)
    shown = middle.imshow(values, origin="lower", extent=box, cmap=DENSITY_COLORS, aspect="auto")
    figure.colorbar(shown, ax=middle, label="p(x)")
    _histogram(right, samples, box)
    for axes, title in ((left, f"data ({len(data):,})"), (middle, "density"), (right, f"samples ({len(samples):,})")):
        axes.set(title=title, xlabel=columns[0])
    left.set_ylabel(columns[1])
    return figure


def flow_animation(frames: Array, times: Sequence[float], box: Box) -> FuncAnimation:
    """Animate points (T, N, 2) on their way from the base to the data, as a moving histogram over a box."""
    figure = Figure(figsize=(4, 4.3), layout="constrained")
    axes = figure.subplots()

    def draw(i: int) -> list[Any]:
        axes.clear()
        _histogram(axes, frames[i], box)
        axes.set(title=f"t = {times[i]:.2f}", xticks=[], yticks=[])
        return []

    return FuncAnimation(figure, draw, frames=len(frames))


def save_gif(animation: FuncAnimation, path: Path, fps: int = 15, dpi: int = 80) -> None:
    """Write an animation as a GIF."""
    animation.save(path, writer=PillowWriter(fps=fps), dpi=dpi)


def corner(sets: Mapping[str, Array], columns: Sequence[str], most: int = 6) -> Figure:
    """Scatter pairs of the first columns: the first set (N, D) below the diagonal, the last above, histograms on it."""
    points = list(sets.values())
    first, last = points[0], points[-1]
    low, high = np.quantile(first, [0.002, 0.998], axis=0)
    shown = min(most, first.shape[1])
    figure = Figure(figsize=(1.7 * shown + 1, 1.7 * shown + 1), layout="constrained")
    for (i, j), axes in np.ndenumerate(figure.subplots(shown, shown, squeeze=False)):
        axes.set(xticks=[], yticks=[], xlim=(low[j], high[j]))
        if i == j:
            edges = np.linspace(low[i], high[i], 50).tolist()
            for k, x in enumerate(points):
                kind = {"histtype": "step", "lw": 1.2} if k else {"histtype": "stepfilled", "alpha": 0.5}
                axes.hist(x[:, i], edges, density=True, color=LINE_COLORS[k], **kind)
        else:
            x, color = (first, LINE_COLORS[0]) if i > j else (last, LINE_COLORS[len(sets) - 1])
            axes.scatter(x[:3000, j], x[:3000, i], s=1, color=color, alpha=0.4, lw=0, rasterized=True)
            axes.set_ylim(low[i], high[i])
        if j == 0:
            axes.set_ylabel(columns[i])
        if i == shown - 1:
            axes.set_xlabel(columns[j])
    names = [f"{name} ({place})" for name, place in zip(sets, ("blue, below", "orange, above"), strict=False)]
    hidden = f", first {shown} of {first.shape[1]} columns" if shown < first.shape[1] else ""
    figure.suptitle(" and ".join(names if len(sets) > 1 else sets) + hidden)
    return figure


def samples(x: Array, columns: Sequence[str]) -> Figure:
    """Draw samples alone: points (N, 2) as a histogram, others (N, D) as a corner plot."""
    if x.shape[1] != 2:
        return corner({"samples": x}, columns)
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    _histogram(axes, x, extent(x))
    axes.set(xlabel=columns[0], ylabel=columns[1], title=f"{len(x):,} samples")
    return figure


def _histogram(axes: Axes, x: Array, box: Box) -> None:
    left, right, bottom, top = box
    axes.hist2d(x[:, 0], x[:, 1], bins=BINS, range=((left, right), (bottom, top)), cmap=DENSITY_COLORS, rasterized=True)
    axes.set_facecolor("black")


# Classifiers


def features(sets: Mapping[str, Array], classes: Array) -> Figure:
    """Scatter points (N, D) of every set, coloured by class (N,); more than two dimensions by principal components."""
    figure = Figure(figsize=(4.5 * len(sets), 4.5), layout="constrained")
    count = int(classes.max()) + 1
    colors = matplotlib.colors.ListedColormap(LINE_COLORS[:2]) if count <= 2 else "tab10" if count <= 10 else "turbo"
    for axes, (title, x) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
        labels = ("first coordinate", "second coordinate")
        if x.shape[1] > 2:
            _, scales, directions = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
            share = (scales[:2] ** 2).sum() / max((scales**2).sum(), np.finfo(float).tiny)
            x, title = x @ directions[:2].T, f"{title}, {x.shape[1]} dimensions ({share:.0%} of the variance shown)"
            labels = ("first principal component", "second principal component")
        flat = np.pad(x, ((0, 0), (0, 2 - x.shape[1])))
        axes.scatter(*flat.T, c=classes, cmap=colors, vmin=0, vmax=max(1, count - 1), s=6, lw=0)
        axes.set_title(title, fontsize="medium")
        axes.set(xlabel=labels[0], ylabel=labels[1])
    return figure


# Training records


def run_curves(records: Sequence[Mapping[str, float]], panels: Mapping[str, Sequence[str]]) -> Figure:
    """Draw figures of the records of a run against the step; each panel has a label and names of figures."""
    figure = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for axes, (label, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for i, name in enumerate(names):
            points = [(record["step"], record[name]) for record in records if name in record]
            if points:
                axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), marker=".", **_line(i))
        axes.set(xlabel="training step", ylabel=label)
        if axes.lines:
            axes.legend()
    return figure


def compare_runs(
    runs: Mapping[str, Mapping[str, Array]],
    panels: Mapping[str, Mapping[str, str]],
    against: tuple[str, str],
    log: bool = False,
) -> Figure:
    """Draw figures of several runs against the step, and one of them against another; a run keeps its colour.

    Args:
        runs: names to figures by name, each (N,), NaN where it is missing; among them ``"step"``.
        panels: for each panel, its label and the names of the figures in it, with their labels, at most four.
        against: names of the abscissa and the ordinate of the last panel.
        log: draw the first and the last panel with a logarithmic ordinate.
    """
    figure = Figure(figsize=(4.5 * (len(panels) + 1), 4.2), layout="constrained")
    *over_steps, last = figure.subplots(1, len(panels) + 1)
    colors = dict(zip(runs, line_colors(len(runs)), strict=True))
    labels = {name: label for names in panels.values() for name, label in names.items()}
    for axes, (label, names) in zip(over_steps, panels.items(), strict=True):
        known = [name for name in names if any(np.isfinite(figures[name]).any() for figures in runs.values())]
        for style, name in zip(LINE_STYLES, known, strict=False):
            for run, figures in runs.items():
                _finite_line(axes, figures["step"], figures[name], color=colors[run], ls=style)
            axes.plot([], color="0.4", ls=style, label=names[name])
        axes.set(xlabel="training step", ylabel=label)
        if known:
            axes.legend()
    x, y = against
    for run, figures in runs.items():
        shown = _finite_line(last, figures[x], figures[y], color=colors[run])
        last.plot(figures[x][shown][-1:], figures[y][shown][-1:], marker="o", color=colors[run])
    last.set(xlabel=f"evaluations, {labels[x]}", ylabel=labels[y])
    last.set_title("large dot: last record", fontsize="medium")
    for axes in (over_steps[0], last) if log else ():
        log_y(axes)
    handles = [Line2D([], [], color=color, marker=".", label=run) for run, color in colors.items()]
    columns = max(1, min(len(runs), 120 // (6 + max(map(len, runs)))))  # those that fit in a line
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def bands(axes: Axes, curves: Mapping[str, Array], title: str = "", ylabel: str = "", log: bool = False) -> None:
    """Draw the mean over seeds as a line and the range over seeds as a band, against the epoch.

    The values are (seeds, epochs + 1), NaN where they are missing, as after a failure.
    """
    for i, (name, values) in enumerate(curves.items()):
        known = np.isfinite(values).any(axis=0)
        epochs, values = np.flatnonzero(known), values[:, known]
        axes.fill_between(epochs, np.nanmin(values, 0), np.nanmax(values, 0), color=_line(i)["color"], alpha=0.25, lw=0)
        axes.plot(epochs, np.nanmean(values, 0), label=name, **_line(i))
    axes.set(title=title, xlabel="epoch", ylabel=ylabel)
    if log:
        log_y(axes)
    axes.legend()


def log_y(axes: Axes) -> None:
    """Set a logarithmic ordinate if there is a positive value to show on it."""
    if np.isfinite(axes.dataLim.minposy):
        axes.set_yscale("log")


def _line(i: int) -> dict[str, Any]:
    """Return colour and style of the i-th line of a panel, which differ also in a print in gray."""
    return {"color": LINE_COLORS[i % len(LINE_COLORS)], "ls": LINE_STYLES[i % len(LINE_STYLES)]}


def _finite_line(axes: Axes, x: Array, y: Array, **style: Any) -> Array:
    """Draw a line through the finite points, and return which of them are finite."""
    known = np.isfinite(x) & np.isfinite(y)
    axes.plot(x[known], y[known], marker=".", **style)
    return known
