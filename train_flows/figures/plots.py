"""Figures of samples, features and training records: arrays in, matplotlib figures out; no model is touched."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL.Image import Image, fromarray

Array = np.ndarray
Records = Sequence[Mapping[str, Any]]  # of a training: figures by name, among them "step"
Panels = Mapping[str, Mapping[str, str]]  # labels to the names of figures with their words, in one unit
Box = tuple[float, float, float, float]  # left, right, bottom, top
DENSITY_COLORS = "magma"  # brightness grows with the density, so that a print in gray shows it too
LINE_COLORS = ("#0072B2", "#E69F00", "#000000", "#D55E00", "#56B4E9", "#009E73", "#CC79A7")  # of Okabe and Ito
MORE_COLORS = (  # the muted scheme of Tol
    *("#332288", "#DDCC77", "#117733", "#CC6677", "#88CCEE"),
    *("#882255", "#44AA99", "#999933", "#AA4499", "#BBBBBB"),
)
MARKERS = ("o", "^", "s", "v", "D", "P", "X", "<", "p", "*")
LINE_STYLES = ("-", "--", ":", "-.")
MARKED_POINTS = 20  # of a line, about
FRAME_DPI, HELD_MILLISECONDS = 80, 1000  # of a GIF
LEAST_MILLISECONDS, FRAME_MILLISECONDS = 3000, (67, 250)  # of a GIF without the held frame; bounds of a frame
FEW_POINTS = 5000  # up to which a histogram in two dimensions is full of holes


def line_colors(count: int) -> list[Any]:
    """Return `count` distinct colours, which remain distinct for readers who confuse red and green."""
    if count <= len(LINE_COLORS):
        return list(LINE_COLORS[:count])
    if count <= len(MORE_COLORS):
        return list(MORE_COLORS[:count])
    return [matplotlib.colormaps["viridis"](x) for x in np.linspace(0, 0.9, count)]


def plain(name: str) -> str:
    """Return a name from data for a figure, where two dollars would begin and end a formula."""
    return name.replace("$", r"\$")


def axis_label(name: str, width: int = 18) -> str:
    """Return a name for an axis, in up to three lines, which may break after an underscore."""
    words = name.replace("_", "_ ")
    lines = textwrap.wrap(words, width, max_lines=3, placeholder="...")
    return plain("\n".join(lines).replace("_ ", "_"))


def marker_size(count: int) -> float:
    """Return the area of the markers of that many points, in square points."""
    return float(np.clip(3000 / max(1, count), 1, 16))


# Samples in one and two dimensions


def limits(x: Array) -> tuple[Array, Array]:
    """Return the bounds (D,) of a box that shows nearly all points (N, D), with a margin; never of no width."""
    x = x.astype(float)
    low, high = np.quantile(x, 0.001, axis=0, method="higher"), np.quantile(x, 0.999, axis=0, method="lower")
    flat = ~(low < high)  # as for a rare value, or less than four points
    low, high = np.where(flat, x.min(axis=0), low), np.where(flat, x.max(axis=0), high)
    center, half = (low + high) / 2, 0.575 * (high - low)
    half = np.where(half > 0, half, np.maximum(0.05 * np.abs(center), np.finfo(float).tiny))
    return center - half, center + half


def extent(x: Array) -> Box:
    """Return the edges of a rectangle that shows nearly all points (N, 2), with a margin."""
    (left, bottom), (right, top) = limits(x)
    return float(left), float(right), float(bottom), float(top)


def grid(box: Box, size: int = 128) -> Array:
    """Return the midpoints (size * size, 2) of the cells of a box, row by row from the bottom."""
    left, right, bottom, top = box
    middle = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(left + middle * (right - left), bottom + middle * (top - bottom))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def density_1d(data: Array, samples: Array, points: Array, log_density: Array, column: str) -> Figure:
    """Draw histograms of data and samples, and the density as a curve.

    Args:
        data: numbers (N,).
        samples: numbers (M,).
        points: increasing numbers (K,), which the figure covers.
        log_density: of the points (K,), in nats.
        column: name of the axis.
    """
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    marginals(axes, [data, samples], *points[[0, -1]], [f"data ({len(data):,})", f"samples ({len(samples):,})"])
    axes.plot(points, np.exp(log_density.astype(float)), color=LINE_COLORS[2], label="density of the model")
    axes.set(xlabel=axis_label(column, 60), ylabel="p(x)", xlim=points[[0, -1]])
    axes.legend()
    return figure


def marginals(axes: Axes, sets: Sequence[Array], low: float, high: float, labels: Sequence[str] = ("", "")) -> None:
    """Draw a filled histogram of the first set (N,), and the outline of one of the second."""
    bins = int(np.clip(2 * len(sets[0]) ** (1 / 3), 8, 60))
    kinds: tuple[dict[str, Any], ...] = ({"histtype": "stepfilled", "alpha": 0.3}, {"histtype": "step", "lw": 1.8})
    for x, label, color, kind in zip(sets, labels, LINE_COLORS, kinds, strict=False):
        x = x[(low <= x) & (x <= high)].astype(float)  # none, if samples follow one far value of the data
        axes.hist(x, bins, range=(low, high), density=len(x) > 0, color=color, label=label, **kind)


def density_2d(data: Array, log_density: Array, samples: Array, columns: Sequence[str] = ("x", "y")) -> Figure:
    """Draw data, density and samples in three panels with one scale of colours.

    Args:
        data: points (N, 2).
        log_density: of the points of ``grid(extent(data))``, (size * size,), in nats.
        samples: points (M, 2).
        columns: names of the axes.
    """
    box = extent(data)
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    left, middle, right = axes = figure.subplots(1, 3, sharex=True, sharey=True)
    log_density = log_density.astype(float)
    finite = log_density[np.isfinite(log_density)]
    peak = finite.max() if len(finite) else 0.0
    size = round(np.sqrt(len(log_density)))
    shown = np.exp(log_density - peak).reshape(size, size)  # without overflow, whatever the unit
    image = middle.imshow(shown, DENSITY_COLORS, aspect="auto", vmin=0, vmax=1, origin="lower", extent=box)
    image.set_interpolation("bilinear")
    cloud(left, data, box, peak)
    cloud(right, samples, box, peak)
    unit = f"{np.exp(peak):.3g}" if abs(peak) < 700 else f"exp({peak:.0f})"
    figure.colorbar(image, ax=axes, label=f"p(x) over its maximum, {unit}", extend="max", pad=0.01)
    for panel, title in zip(axes, (f"data ({len(data):,})", "density", f"samples ({len(samples):,})"), strict=True):
        panel.set(title=title, xlabel=axis_label(columns[0], 40))
    left.set_ylabel(axis_label(columns[1], 30))
    return figure


def cloud(axes: Axes, x: Array, box: Box, peak: float | None = None) -> None:
    """Draw many points (N, 2) as a histogram, and few as points.

    Args:
        axes: to draw in.
        x: points.
        box: edges of the histogram.
        peak: logarithm of the density at the end of the scale of colours; that of the fullest cell when None.
    """
    axes.set_facecolor("black")
    if len(x) < FEW_POINTS:
        color = matplotlib.colormaps[DENSITY_COLORS](0.9)
        axes.scatter(*x.T, s=marker_size(len(x)), color=color, lw=0, rasterized=True)
        axes.axis(box)
        return
    (left, right, bottom, top), bins = box, int(np.clip(np.sqrt(len(x) / 4), 30, 100))
    counts, *_ = np.histogram2d(*x.astype(float).T, bins=bins, range=((left, right), (bottom, top)))
    if peak is not None:
        counts = counts / len(x) / np.exp(peak + np.log((right - left) / bins) + np.log((top - bottom) / bins))
    top = counts.max() if peak is None else 1
    axes.imshow(counts.T, origin="lower", extent=box, cmap=DENSITY_COLORS, aspect="auto", vmin=0, vmax=top)


def flow_animation(frames: Array, times: Sequence[float], box: Box) -> Iterator[Image]:
    """Animate points (T, N, 2) on their way from the base to the data, as a moving histogram over a box."""
    figure = Figure(figsize=(4, 4.3), layout="constrained")
    axes = figure.subplots()

    def draw(i: int) -> None:
        axes.clear()
        cloud(axes, frames[i], box)
        axes.set(title=f"t = {times[i]:.2f}", xticks=[], yticks=[])

    return drawn_frames(figure, draw, len(frames))


def drawn_frames(figure: Figure, draw: Callable[[int], None], count: int) -> Iterator[Image]:
    """Yield a figure as an image after every call of ``draw(i)``, laid out as in the first one."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(FRAME_DPI)
    for i in range(count):
        draw(i)
        canvas.draw()
        figure.set_layout_engine("none")
        yield fromarray(np.array(canvas.buffer_rgba())).convert("RGB")


def save_gif(frames: Iterable[Image], path: Path) -> None:
    """Write images as a GIF, of which the last one is held; few images follow each other slowly."""
    first, *others = frames
    each = float(np.clip(LEAST_MILLISECONDS / max(1, len(others)), *FRAME_MILLISECONDS))
    durations = [*[each] * len(others), HELD_MILLISECONDS]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)


# Classifiers


def features(sets: Mapping[str, Array], classes: Array, names: Sequence[str], what: str = "class") -> Figure:
    """Scatter points (N, D) of every set by class (N,), with the names of the classes in a legend, titled ``what``.

    More than two dimensions are shown by principal components. Of more than ten classes, a bar of colours shows the
    number.
    """
    figure = Figure(figsize=(4.5 * len(sets) + 1, 4.5), layout="constrained")
    panels = figure.subplots(1, len(sets), squeeze=False)[0]
    colors, many = line_colors(len(names)), len(names) > len(MARKERS)
    size = 3 * marker_size(len(classes))
    for axes, (title, x) in zip(panels, sets.items(), strict=True):
        labels = ("first coordinate", "second coordinate")
        if x.shape[1] > 2:
            _, scales, directions = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
            share = (scales[:2] ** 2).sum() / max((scales**2).sum(), np.finfo(float).tiny)
            x, title = x @ directions[:2].T, f"{title}, {x.shape[1]} dimensions\n({share:.0%} of the variance shown)"
            labels = ("first principal component", "second principal component")
        if x.shape[1] == 1:  # classes above each other
            x, labels = np.stack([x[:, 0], classes], axis=1), ("coordinate", what)
            axes.set_yticks(range(len(names)) if not many else [])
        for k in np.unique(classes):
            own, marker = x[classes == k], "o" if many else MARKERS[k]
            axes.scatter(*own.T, s=size, color=colors[k], marker=marker, alpha=0.8, lw=0, label=names[k])
        axes.set_title(title, fontsize="medium")
        axes.set(xlabel=labels[0], ylabel=labels[1])
    if many:
        scale = ScalarMappable(Normalize(0, len(names) - 1), ListedColormap(colors))
        figure.colorbar(scale, ax=panels, label="number of the class")
    else:
        handles = [
            Line2D([], [], ls="", marker=marker, color=color, label=plain(name))
            for marker, color, name in zip(MARKERS, colors, names, strict=False)
        ]
        figure.legend(handles=handles, loc="outside right center", title=what)
    return figure


# Training records


def run_curves(records: Records, panels: Panels) -> Figure:
    """Draw figures of the records of a run against the step, in the panels of which some record has a figure."""
    panels = _known(panels, records)
    count = max(1, len(panels))
    figure = Figure(figsize=(4.5 * count, 3.6), layout="constrained")
    for axes, (label, names) in zip(figure.subplots(1, count, squeeze=False)[0], panels.items(), strict=False):
        for i, (name, words) in enumerate(names.items()):
            if len(points := _points(records, "step", name)):
                axes.plot(*points.T, label=words, marker=".", markevery=_spaced(points), **_line(i))
        _finish(axes, label)
    return figure


def compare_runs(runs: Mapping[str, Records], panels: Panels, against: tuple[str, str], log: bool = False) -> Figure:
    """Draw figures of several runs against the step, and one of them against another.

    A run keeps its colour and marker, a figure its style of line.

    Args:
        runs: names to records.
        panels: as for :func:`run_curves`, with at most four figures each.
        against: names of the abscissa and the ordinate of the last panel.
        log: draw the first and the last panel with a logarithmic ordinate.
    """
    labels = {name: f"{label}, {words}" for label, names in panels.items() for name, words in names.items()}
    panels = _known(panels, [record for records in runs.values() for record in records])
    figure = Figure(figsize=(4.5 * (len(panels) + 1), 4.2), layout="constrained")
    *over_steps, last = figure.subplots(1, len(panels) + 1, squeeze=False)[0]
    looks: dict[str, dict[str, Any]] = {
        run: {"color": color, "marker": MARKERS[i % len(MARKERS)], "ms": 4}
        for i, (run, color) in enumerate(zip(runs, line_colors(len(runs)), strict=True))
    }
    for axes, (label, names) in zip(over_steps, panels.items(), strict=True):
        for style, (name, words) in zip(LINE_STYLES, names.items(), strict=False):
            drawn = {run: points for run, records in runs.items() if len(points := _points(records, "step", name))}
            for run, points in drawn.items():
                axes.plot(*points.T, ls=style, markevery=_spaced(points), **looks[run])
            if drawn:
                axes.plot([], color="0.4", ls=style, label=words)
        _finish(axes, label)
    for run, records in runs.items():
        if len(points := _points(records, *against)):
            last.plot(*points.T, lw=0.8, alpha=0.5, **looks[run])
            last.plot(*points[-1:].T, **looks[run] | {"ms": 9})
    last.set(xlabel=labels[against[0]], ylabel=labels[against[1]])
    last.set_title("large marker: last record", fontsize="medium")
    for axes in (*over_steps[:1], last) if log else ():
        log_y(axes)
    handles = [Line2D([], [], label=plain(run), **look) for run, look in looks.items()]
    columns = max(1, min(len(runs), 120 // (6 + max(map(len, runs)))))  # those that fit in a line
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def _known(panels: Panels, records: Records) -> Panels:
    """Return the panels of which some record has a figure."""
    known = {name for record in records for name in record if len(_points([record], "step", name))}
    return {label: names for label, names in panels.items() if not known.isdisjoint(names)}


def _points(records: Records, x: str, y: str) -> Array:
    """Return one figure against another, (N, 2), of the records with finite values."""
    pairs = np.array([(record.get(x), record.get(y)) for record in records], dtype=float).reshape(-1, 2)
    return pairs[np.isfinite(pairs).all(axis=1)]


def _spaced(points: Array) -> int:
    """Return the distance between points with a marker: 1, or more on a long line."""
    return max(1, len(points) // MARKED_POINTS)


def _finish(axes: Axes, label: str) -> None:
    """Label a panel of figures against the step."""
    axes.set(xlabel="training step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend()


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
