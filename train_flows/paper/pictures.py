"""Drawing shared by the experiments: arrays in, no model is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train_flows.curves import log_y

Array = np.ndarray
SIDES = "coolwarm"  # target -1 in blue, +1 in red


def bands(axes: Axes, curves: Mapping[str, Array], title: str = "", ylabel: str = "", log: bool = False) -> None:
    """Mean over seeds as a line, and the range of all seeds as a band, against the epoch; a failed one ends early.

    Args:
        axes: where to draw.
        curves: names to values (seeds, epochs + 1), NaN where there are none.
        title: of the axes.
        ylabel: what the values are.
        log: on a logarithmic axis.
    """
    for i, (name, values) in enumerate(curves.items()):
        known = np.isfinite(values).any(axis=0)
        epochs, values = np.flatnonzero(known), values[:, known]
        axes.fill_between(epochs, np.nanmin(values, 0), np.nanmax(values, 0), color=f"C{i}", alpha=0.25, lw=0)
        axes.plot(epochs, np.nanmean(values, 0), color=f"C{i}", label=name)
    axes.set(title=title, xlabel="epoch", ylabel=ylabel)
    if log:
        log_y(axes)
    axes.legend()


def points(axes: Any, x: Array, y: Array, title: str = "") -> None:
    """Points (N, 1), (N, 2) or (N, 3), coloured by their targets (N,); one dimension is drawn along the abscissa."""
    x = np.pad(x, ((0, 0), (0, max(0, 2 - x.shape[1]))))
    axes.scatter(*x.T, c=y, cmap=SIDES, s=4, lw=0, alpha=0.8)
    axes.set_title(title, fontsize="medium")
    axes.tick_params(labelsize="small")


def paths(axes: Any, path: Array, y: Array) -> None:
    """Trajectories (T, N, 2) or (T, N, 3), coloured by their targets (N,)."""
    for target, color in ((-1, "C0"), (1, "C3")):
        for trajectory in path[:, y == target].swapaxes(0, 1):
            axes.plot(*trajectory.T, color=color, lw=0.6, alpha=0.6)


def grid(rows: int, columns: int, solid_rows: Sequence[int] = (), size: float = 2.6) -> tuple[Figure, list[list[Any]]]:
    """A figure of square axes, those of ``solid_rows`` in three dimensions."""
    figure = Figure(figsize=(size * columns, size * rows), layout="constrained")
    axes = [
        [
            figure.add_subplot(rows, columns, row * columns + i + 1, projection="3d" if row in solid_rows else None)
            for i in range(columns)
        ]
        for row in range(rows)
    ]
    return figure, axes
