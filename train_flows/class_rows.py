"""Pictures of images in classes: a row for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from train_flows import plots

Array = np.ndarray
ROWS, COLUMNS = 10, 8  # at most
FRAME = 0.3  # grey


def in_rows(sets: Mapping[str, tuple[Array, Array]], names: Sequence[str]) -> Figure:
    """Images side by side, in each a row for a class: the first images of the first classes there are.

    Args:
        sets: names to images (N, C, H, W), values from 0, and their classes (N,).
        names: of the classes.
    """
    classes = np.unique(np.concatenate([y for _, y in sets.values()]))[:ROWS]
    top = max(1, *(x.max() for x, _ in sets.values()))
    tiled = {title: _tiled(x, y, classes, FRAME * top)[None] for title, (x, y) in sets.items()}
    figure = plots.image_grids(tiled, rows=1)
    height = next(iter(tiled.values())).shape[2] / len(classes)
    for axes in figure.axes:
        axes.set_yticks((np.arange(len(classes)) + 0.5) * height, [names[k] for k in classes])
    return figure


def _tiled(x: Array, y: Array, classes: Array, frame: float) -> Array:
    """One image (C, rows, columns) of the first images of each class, black where there are too few."""
    columns = min(COLUMNS, max(int((y == k).sum()) for k in classes))
    tiles = np.zeros((len(classes), columns, *x.shape[1:]))
    for row, k in zip(tiles, classes, strict=True):
        found = x[y == k][:columns]
        row[: len(found)] = found
    framed = np.pad(tiles, ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)), constant_values=frame)
    rows, _, channels, height, width = framed.shape
    return framed.transpose(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)
