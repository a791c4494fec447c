"""Figures of images: arrays in, matplotlib figures out; no model is touched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from PIL.Image import Image
from torchvision.utils import make_grid

from train_flows.figures import plots

Array = np.ndarray
GAP = 0.4  # gray level between images


def tiles(images: Array, columns: int, max_value: float) -> Array:
    """Tile images (N, C, H, W), N columns a row, with gray lines between them: (H', W', 3), values from 0 to 1."""
    scaled = torch.as_tensor(images / max_value).clamp(0, 1)
    gap = max(1, images.shape[2] // 16)
    return make_grid(scaled, nrow=columns, padding=gap, pad_value=GAP).permute(1, 2, 0).numpy()


def image_panels(sets: Mapping[str, Array], max_value: float, columns: int | None = None) -> Figure:
    """Draw images (N, C, H, W) of every set, N columns a row or in squares, all with the same gray scale."""
    side = columns or min(math.ceil(math.sqrt(len(images))) for images in sets.values())
    if len(sets) > 1:
        side = min(max(1, math.isqrt(len(images))) for images in sets.values())
        sets = {title: images[: side * side] for title, images in sets.items()}
    return _panels({title: tiles(images, side, max_value) for title, images in sets.items()})


def images_by_class(
    sets: Mapping[str, tuple[Array, Array]], names: Sequence[str], max_value: float, most: int | None = None
) -> Figure:
    """Draw a row of images for every class, at most ``most`` classes and images of each.

    Args:
        sets: titles to images (N, C, H, W) and their classes (N,).
        names: of the classes.
        max_value: largest value of a pixel.
        most: all when None.
    """
    classes = np.unique(np.concatenate([y for _, y in sets.values()]))[:most]
    panels = {}
    for title, (x, y) in sets.items():
        columns = min(most or len(y), max(int((y == k).sum()) for k in classes))
        rows = np.zeros((len(classes), columns, *x.shape[1:]))
        for row, k in zip(rows, classes, strict=True):
            found = x[y == k][:columns]
            row[: len(found)] = found
        panels[title] = tiles(rows.reshape(-1, *x.shape[1:]), columns, max_value)
    return _panels(panels, [plots.plain(names[k]) for k in classes])


def image_animation(frames: Array, times: Sequence[float], max_value: float) -> Iterator[Image]:
    """Animate images (T, N, C, H, W) on their way from noise, at T times."""
    side = math.ceil(math.sqrt(frames.shape[1]))
    figure = _panels({"t = 0.00": tiles(frames[0], side, max_value)}, inches=5)
    (axes,) = figure.axes

    def draw(i: int) -> None:
        axes.images[0].set_data(tiles(frames[i], side, max_value))
        axes.set_title(f"t = {times[i]:.2f}", fontsize="medium")

    return plots.drawn_frames(figure, draw, len(frames))


def mistakes(images: Array, classes: Array, scores: Array, names: Sequence[str], max_value: float) -> Figure:
    """Draw the confusion matrix, and at most 24 images that are most surely taken for another class.

    Args:
        images: images (N, C, H, W).
        classes: their classes (N,).
        scores: probabilities of the classes (N, K).
        names: of the K classes.
        max_value: largest value of a pixel.
    """
    predicted, names = scores.argmax(1), [plots.plain(name) for name in names]
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (classes, predicted), 1)
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = (figure.add_subfigure(place) for place in GridSpec(1, 2, figure))
    axes = left.subplots()
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    accuracy = (predicted == classes).mean()
    axes.set(xlabel="predicted class", ylabel="true class", title=f"{accuracy:.1%} of {len(classes)} are right")
    if len(names) <= 20:  # more names are illegible
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for i, j in np.argwhere(counts):
            color = "w" if shares[i, j] > 0.5 else "k"
            axes.text(j, i, f"{counts[i, j]:.0f}", ha="center", va="center", size=7, color=color)
    wrong = np.flatnonzero(predicted != classes)
    wrong = wrong[np.argsort(-scores[wrong, predicted[wrong]])][:24]
    right.suptitle("surest mistakes: true class > predicted class" if len(wrong) else "no mistakes")
    for panel, i in zip(right.subplots(4, 6).ravel(), [*wrong, *[None] * 24], strict=False):
        panel.axis("off")
        if i is not None:
            panel.imshow(images[i].transpose(1, 2, 0) / max_value, cmap="gray", vmin=0, vmax=1)
            panel.set_title(f"{names[classes[i]]} >\n{names[predicted[i]]}", fontsize="x-small")
    return figure


def _panels(panels: Mapping[str, Array], row_names: Sequence[str] = (), inches: float = 10) -> Figure:
    """Draw tiled images (H, W, 3) side by side, with titles, and names of the rows of the first."""
    height, widths = len(next(iter(panels.values()))), [panel.shape[1] for panel in panels.values()]
    scale = inches / max(height, sum(widths))
    figure = Figure(figsize=(max(3, scale * sum(widths)) + bool(row_names), scale * height + 0.4), layout="constrained")
    for axes, (title, panel) in zip(
        figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0], panels.items(), strict=True
    ):
        axes.imshow(panel, interpolation="nearest")
        axes.set_title(title, fontsize="medium")
        axes.set(xticks=[], yticks=[], frame_on=False)
    if row_names:
        centers = (np.arange(len(row_names)) + 0.5) * height / len(row_names) - 0.5
        figure.axes[0].set_yticks(centers, row_names)
        figure.axes[0].tick_params(length=0)
    return figure
