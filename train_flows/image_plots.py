"""Pictures of images: arrays in, matplotlib figures out; no model is touched here.

Every pixel is a square of as many of the figure as suit its size, so that none is smeared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.figure import Figure

Array = np.ndarray
FRAME = 0.4  # gray level between images: neither that of strokes nor that of the ground
PIXELS = 1000  # of images in a figure on its longer side, about
DPI = 100
MARGIN, GAP, TITLE = 8, 24, 28  # pixels at the edges, between panels, and for words above them
LETTER = 8  # pixels of a letter of those beside them


def tiles(images: Array, columns: int, top: float) -> Array:
    """Images side by side, row by row, in frames; places left over in the last row stay empty.

    Args:
        images: (N, C, H, W), of one channel or three, values from 0.
        columns: images in a row.
        top: value of a full pixel.

    Returns:
        (H', W', C), from 0 to 1.
    """
    n, channels, height, width = images.shape
    frame = max(1, height // 16)
    rows = math.ceil(n / columns)
    padded = np.full((rows * columns, channels, height + frame, width + frame), FRAME)
    padded[:n, :, frame:, frame:] = (images / top).clip(0, 1)
    placed = padded.reshape(rows, columns, channels, height + frame, width + frame).transpose(0, 3, 1, 4, 2)
    joined = placed.reshape(rows * (height + frame), columns * (width + frame), channels)
    return np.pad(joined, ((0, frame), (0, frame), (0, 0)), constant_values=FRAME)


def grid(images: Array, top: float) -> Figure:
    """All images (N, C, H, W), and nothing else; ``top`` is the value of a full pixel."""
    return _figure([tiles(images, _side(images), top)])


def squares(sets: Mapping[str, Array], top: float) -> Figure:
    """Squares of images side by side.

    Args:
        sets: titles to images (N, C, H, W), values from 0.
        top: value of a full pixel.
    """
    side = min(max(1, math.isqrt(len(images))) for images in sets.values())
    return _figure([tiles(images[: side * side], side, top) for images in sets.values()], list(sets))


def rows(images: Array, top: float, title: str, names: Sequence[str] = ()) -> Figure:
    """Rows of images that belong together.

    Args:
        images: (R, N, C, H, W), values from 0.
        top: value of a full pixel.
        title: of the figure.
        names: of the rows.
    """
    joined = images.reshape(-1, *images.shape[2:])
    return _figure([tiles(joined, images.shape[1], top)], [title], names)


def beside(images: Array, others: Array, top: float, titles: Sequence[str]) -> Figure:
    """A column of images, and those that belong to each of them in its row.

    Args:
        images: (N, C, H, W), values from 0.
        others: (N, K, C, H, W).
        top: value of a full pixel.
        titles: of both.
    """
    joined = others.reshape(-1, *images.shape[1:])
    return _figure([tiles(images, 1, top), tiles(joined, others.shape[1], top)], titles)


def in_classes(
    sets: Mapping[str, tuple[Array, Array]], names: Sequence[str], top: float, most: int | None = None
) -> Figure:
    """Images side by side, in each panel a row for every class there is.

    Args:
        sets: titles to images (N, C, H, W), values from 0, and their classes (N,).
        names: of the classes.
        top: value of a full pixel.
        most: of the first classes, and of the first images of each; all where it is None.
    """
    classes = np.unique(np.concatenate([y for _, y in sets.values()]))[:most]
    panels = []
    for x, y in sets.values():
        columns = min(most or len(y), max(int((y == k).sum()) for k in classes))
        placed = np.zeros((len(classes), columns, *x.shape[1:]))
        for row, k in zip(placed, classes, strict=True):
            found = x[y == k][:columns]
            row[: len(found)] = found
        panels.append(tiles(placed.reshape(-1, *x.shape[1:]), columns, top))
    return _figure(panels, list(sets), [names[k] for k in classes])


def animation(frames: Array, times: Sequence[float], top: float) -> FuncAnimation:
    """Images on their way from noise.

    Args:
        frames: (T, N, C, H, W), values from 0.
        times: T times.
        top: value of a full pixel.
    """
    side = _side(frames[0])
    figure = _figure([tiles(frames[0], side, top)], [""], pixels=PIXELS // 2)
    (axes,) = figure.axes

    def draw(i: int) -> list[Any]:
        axes.images[0].set_data(tiles(frames[i], side, top))
        axes.set_title(f"t = {times[i]:.2f}", fontsize="medium")
        return []

    return FuncAnimation(figure, draw, frames=len(frames))


def _side(images: Array) -> int:
    """Images in a row of a square of all."""
    return math.ceil(math.sqrt(len(images)))


def _figure(
    panels: Sequence[Array], titles: Sequence[str] = (), names: Sequence[str] = (), pixels: int = PIXELS
) -> Figure:
    """Panels (H, W, C) of one height side by side, each pixel a square of the same size.

    Args:
        panels: gray or coloured, from 0 to 1.
        titles: of all panels, or none.
        names: of the rows of the first, or none.
        pixels: of the figure on its longer side, about.
    """
    height, widths = len(panels[0]), [panel.shape[1] for panel in panels]
    scale = max(1, pixels // max(height, sum(widths)))
    left = MARGIN + LETTER * max((len(name) + 1 for name in names), default=0)
    above = MARGIN + TITLE * bool(titles)
    size = np.array([left + scale * sum(widths) + GAP * (len(panels) - 1) + MARGIN, MARGIN + scale * height + above])
    figure = Figure(figsize=tuple(size / DPI), dpi=DPI)
    for i, (panel, width) in enumerate(zip(panels, widths, strict=True)):
        box = np.array([(left, MARGIN), (scale * width, scale * height)]) / size
        axes = figure.add_axes(tuple(box.ravel()))
        axes.imshow(panel, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes.set(xticks=[], yticks=[], frame_on=False)
        if titles:
            axes.set_title(titles[i], fontsize="medium")
        left += scale * width + GAP
    if names:
        axes = figure.axes[0]
        axes.set_yticks((np.arange(len(names)) + 0.5) * height / len(names) - 0.5, names)
        axes.tick_params(length=0)
    return figure
