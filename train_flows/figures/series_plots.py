"""Figures of time series: forecasts with bands, paths of states, and vector fields; arrays in, figures out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from PIL.Image import Image

from train_flows.figures.plots import LINE_COLORS, Array, axis_label, drawn_frames, marker_size, plain

P = TypeVar("P")  # Bands or Path
BLUE, ORANGE, BLACK = LINE_COLORS[:3]
TIME_COLORS = "viridis"
ARROWS = 24  # of a vector field, in a row


@dataclass(frozen=True, eq=False)
class Bands:
    """A forecast of one feature of one series.

    Attributes:
        title: of the panel.
        history: times (H,), numbers or dates, and values (H,) that the model saw.
        target: times (T,) and values (T,) to compare with.
        times: times (N,) of the forecast.
        quantiles: values at 5, 25, 50, 75 and 95%, (5, N).
    """

    title: str
    history: tuple[Array, Array]
    target: tuple[Array, Array]
    times: Array
    quantiles: Array


def forecast_bands(rows: Sequence[Sequence[Bands]], labels: Sequence[str], time: str) -> Figure:
    """Draw forecasts: a row of panels for each feature, a column for each series.

    Args:
        rows: panels by feature.
        labels: names of the features.
        time: label of the time axis.
    """
    figure = Figure(figsize=(max(7.0, 4.6 * len(rows[0])), 1.0 + 2.4 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False, sharex="col")
    for i, (panels, label) in enumerate(zip(rows, labels, strict=True)):
        for axes, panel in zip(grid[i], panels, strict=True):
            draw_bands(axes, panel)
            if i == 0:
                axes.set_title(plain(panel.title), fontsize="medium")
        grid[i, 0].set_ylabel(axis_label(label))
    for axes in grid[-1]:
        axes.set_xlabel(axis_label(time))
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize="small")
    return figure


def draw_bands(axes: Axes, panel: Bands) -> None:
    """Draw the intervals and the median of a forecast, and the observations."""
    low, lower, middle, upper, high = panel.quantiles
    axes.fill_between(panel.times, low, high, color=BLUE, alpha=0.18, lw=0, label="90% interval")
    axes.fill_between(panel.times, lower, upper, color=BLUE, alpha=0.35, lw=0, label="50% interval")
    axes.plot(panel.times, middle, color=BLUE, lw=1.4, label="median")
    size = 2 * marker_size(len(panel.history[0]) + len(panel.target[0]))
    axes.scatter(*panel.history, s=size, color=BLACK, lw=0, zorder=3, label="history")
    axes.scatter(*panel.target, s=size, color=ORANGE, lw=0, zorder=3, label="held out")
    axes.axvline(panel.history[0][-1], color="0.6", lw=0.8, ls="--")
    if np.issubdtype(np.asarray(panel.times).dtype, np.datetime64):
        locator = AutoDateLocator(minticks=3, maxticks=7)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


@dataclass(frozen=True, eq=False)
class Path:
    """A path in two or three dimensions.

    Attributes:
        title: of the panel.
        times: times (N,), numbers.
        points: positions (N, 2) or (N, 3) at these times.
        seen: points (H, 2) that the model saw; empty if it saw others.
        target: points (T, 2) to compare with; empty if they are not comparable.
        cut: time at which the history ends.
    """

    title: str
    times: Array
    points: Array
    seen: Array
    target: Array
    cut: float


def paths(
    panels: Sequence[Path], labels: Sequence[str], time: str, arrows: tuple[Array, Array] | None = None
) -> Figure:
    """Draw paths coloured by time, from the history into the forecast.

    Args:
        panels: one for each series.
        labels: names of the two or three axes.
        time: label of the colours.
        arrows: positions (M, 2) and velocities (M, 2) of a vector field behind the paths.
    """
    dimensions = len(labels)
    figure = Figure(figsize=(4.3 * len(panels) + 1, 4.2), layout="constrained")
    kind = {"projection": "3d"} if dimensions == 3 else {}
    grid = figure.subplots(1, len(panels), squeeze=False, subplot_kw=kind)[0]
    scale = Normalize(min(panel.times[0] for panel in panels), max(panel.times[-1] for panel in panels))
    for axes, panel in zip(grid, panels, strict=True):
        if arrows is not None:
            _draw_field(axes, *arrows)
        draw_path(axes, panel, scale)
        if dimensions == 3:
            axes.set_zlabel(axis_label(labels[2]))
        axes.set_title(plain(panel.title), fontsize="medium")
        axes.set(xlabel=axis_label(labels[0], 40), ylabel=axis_label(labels[1], 30))
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize="small")
    figure.colorbar(ScalarMappable(scale, TIME_COLORS), ax=list(grid), label=axis_label(time, 40))
    return figure


def draw_path(axes: Axes, panel: Path, scale: Normalize | None = None) -> None:
    """Draw a path and the points to compare it with, in the colours of a scale or of the path's own times."""
    if panel.points.shape[1] == 3:
        axes.scatter(*panel.points.T, c=panel.times, cmap=TIME_COLORS, norm=scale, s=5)
    else:
        segments = np.stack([panel.points[:-1], panel.points[1:]], axis=1)
        line = LineCollection(list(segments), cmap=TIME_COLORS, norm=scale, lw=2)
        line.set_array(panel.times[:-1])
        axes.add_collection(line)
        for points, color, name in ((panel.seen, BLACK, "history"), (panel.target, ORANGE, "held out")):
            if len(points):
                axes.scatter(*points.T, s=2 * marker_size(len(points)), color=color, lw=0, label=name)
        axes.autoscale_view()
    end = panel.points[np.searchsorted(panel.times, panel.cut).clip(0, len(panel.points) - 1)]
    axes.plot(*end[:, None], marker="s", ms=6, mfc="none", color=BLACK, ls="", label="end of the history")


def animate(
    figure: Figure, draw: Callable[[Axes, P], None], frames: Sequence[Sequence[P]], titles: Sequence[str]
) -> Iterator[Image]:
    """Animate the panels of a figure, whose axes keep their limits.

    Args:
        figure: its first axes show panels, the first of them with a title.
        draw: draws a panel.
        frames: panels of each frame.
        titles: of the frames.
    """

    def draw_frame(i: int) -> None:
        for axes, panel in zip(figure.axes, frames[i], strict=False):
            axes.autoscale(False)
            for artist in (*axes.collections, *axes.lines):
                artist.remove()
            draw(axes, panel)
        figure.axes[0].set_title(plain(titles[i]), fontsize="medium")

    return drawn_frames(figure, draw_frame, len(frames))


def _draw_field(axes: Axes, positions: Array, velocities: Array) -> None:
    """Draw the directions of a vector field; darker where it is faster."""
    speed = np.linalg.norm(velocities, axis=1)
    direction = velocities / np.maximum(speed, np.finfo(float).tiny)[:, None]
    axes.quiver(*positions.T, *direction.T, np.log1p(speed), cmap="Greys", alpha=0.6, width=0.003, scale=1.4 * ARROWS)
