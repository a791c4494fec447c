"""Pictures: arrays in, matplotlib figures out; no model is touched here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

Array = np.ndarray
COLORS = "magma"
BINS = 100


def extent(x: Array) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) of a square that shows nearly all points (N, 2), with a margin."""
    low, high = np.quantile(x, [0.001, 0.999], axis=0)
    center, half = (low + high) / 2, 0.575 * (high - low)
    left, bottom = center - half
    right, top = center + half
    return float(left), float(right), float(bottom), float(top)


def grid(box: tuple[float, float, float, float], size: int = 160) -> Array:
    """Midpoints (size * size, 2) of the cells of a box, row by row from the bottom."""
    left, right, bottom, top = box
    middle = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(left + middle * (right - left), bottom + middle * (top - bottom))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def density_2d(data: Array, log_density: Array, samples: Array, columns: Sequence[str] = ("x", "y")) -> Figure:
    """Data | density | samples, side by side.

    Args:
        data: (N, 2).
        log_density: of the points of ``grid(extent(data))``, (size * size,).
        samples: (M, 2).
        columns: names of the axes.
    """
    box = extent(data)
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharex=True, sharey=True)
    size = round(np.sqrt(len(log_density)))
    _histogram(left, data, box)
    middle.imshow(np.exp(log_density).reshape(size, size), origin="lower", extent=box, cmap=COLORS, aspect="auto")
    _histogram(right, samples, box)
    for axes, title in ((left, "data"), (middle, "density"), (right, "samples")):
        axes.set(title=title, xlabel=columns[0])
    left.set_ylabel(columns[1])
    return figure


def flow_animation(frames: Array, times: Sequence[float], box: tuple[float, float, float, float]) -> FuncAnimation:
    """Points (T, N, 2) on their way from base to data, as a moving histogram.

    Args:
        frames: positions at every time.
        times: T times.
        box: what to show, from :func:`extent`.
    """
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
    """Every pair of columns, the first set below the diagonal, the last above, the histograms of all on it.

    Args:
        sets: names to points (N, D).
        columns: D names.
        most: how many columns to show, from the first.
    """
    first = next(iter(sets.values()))
    low, high = np.quantile(first, [0.002, 0.998], axis=0)
    shown = min(most, first.shape[1])
    figure = Figure(figsize=(1.7 * shown + 1, 1.7 * shown + 1), layout="constrained")
    axes = figure.subplots(shown, shown, squeeze=False)
    for i in range(shown):
        for j in range(shown):
            axes[i, j].set(xticks=[], yticks=[], xlim=(low[j], high[j]))
            if i == j:
                _densities(axes[i, i], [x[:, i] for x in sets.values()], np.linspace(low[i], high[i], 50).tolist())
            else:
                below = i > j
                x = first if below else list(sets.values())[-1]
                color = "C0" if below else f"C{len(sets) - 1}"
                axes[i, j].scatter(x[:3000, j], x[:3000, i], s=1, color=color, alpha=0.4, lw=0, rasterized=True)
                axes[i, j].set_ylim(low[i], high[i])
        axes[i, 0].set_ylabel(columns[i])
        axes[-1, i].set_xlabel(columns[i])
    names = [f"{name} ({color})" for name, color in zip(sets, ("blue, below", "orange, above"), strict=False)]
    hidden = f", first {shown} of {first.shape[1]} columns" if shown < first.shape[1] else ""
    figure.suptitle(" and ".join(names if len(sets) > 1 else sets) + hidden)
    return figure


def _densities(axes: Axes, sets: Sequence[Array], edges: Sequence[float]) -> None:
    for i, x in enumerate(sets):
        axes.hist(x, edges, density=True, color=f"C{i}", histtype="step" if i else "stepfilled", alpha=1 if i else 0.5)


def samples(x: Array, columns: Sequence[str]) -> Figure:
    """Samples alone: points (N, 2) as a histogram, others (N, D) as a corner plot."""
    if x.shape[1] != 2:
        return corner({"samples": x}, columns)
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    _histogram(axes, x, extent(x))
    axes.set(xlabel=columns[0], ylabel=columns[1])
    return figure


def features(sets: Mapping[str, Array], classes: Array) -> Figure:
    """Points (N, D) side by side, coloured by their classes (N,): of more dimensions, the two of largest variance."""
    figure = Figure(figsize=(4.5 * len(sets), 4.5), layout="constrained")
    for axes, (title, x) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
        if x.shape[1] > 2:
            _, scales, directions = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
            share = (scales[:2] ** 2).sum() / max((scales**2).sum(), np.finfo(float).tiny)
            x, title = (
                x @ directions[:2].T,
                f"{title}: first two of {x.shape[1]} principal axes, {share:.0%} of variance",
            )
        flat = np.pad(x, ((0, 0), (0, 2 - x.shape[1])))
        colors = "coolwarm" if classes.max() < 2 else "tab10" if classes.max() < 10 else "gist_rainbow"
        axes.scatter(*flat.T, c=classes, cmap=colors, s=6, lw=0)
        axes.set_title(title, fontsize="medium")
    return figure


def mistakes(images: Array, classes: Array, scores: Array, names: Sequence[str], top: int) -> Figure:
    """How often each class is taken for which, and the images (at most 24) that are most surely taken for another.

    Args:
        images: (N, C, H, W).
        classes: (N,).
        scores: probabilities of the classes (N, K).
        names: of the classes.
        top: largest value of a pixel.
    """
    taken = scores.argmax(1)
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (classes, taken), 1)
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = (figure.add_subfigure(place) for place in GridSpec(1, 2, figure))
    axes = left.subplots()
    axes.imshow(counts / counts.sum(1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
    few = len(names) <= 20  # whose names are legible
    axes.set(xlabel="taken for", ylabel="class", title=f"{(taken == classes).mean():.1%} of {len(classes)} are right")
    if few:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for i, j in np.argwhere(counts):
            axes.text(
                j,
                i,
                f"{counts[i, j]:.0f}",
                ha="center",
                va="center",
                size=7,
                color="w" if counts[i, j] > counts[i].sum() / 2 else "k",
            )
    wrong = np.flatnonzero(taken != classes)
    wrong = wrong[np.argsort(-scores[wrong, taken[wrong]])][:24]
    right.suptitle("surest mistakes: class > taken for" if len(wrong) else "no mistakes")
    for panel, i in zip(right.subplots(4, 6).ravel(), [*wrong, *[None] * 24], strict=False):
        panel.axis("off")
        if i is not None:
            panel.imshow(images[i].transpose(1, 2, 0) / top, cmap="gray", vmin=0, vmax=1)
            panel.set_title(f"{names[classes[i]]} > {names[taken[i]]}", fontsize="x-small")
    return figure


def _histogram(axes: Axes, x: Array, box: tuple[float, float, float, float]) -> None:
    left, right, bottom, top = box
    axes.hist2d(x[:, 0], x[:, 1], bins=BINS, range=((left, right), (bottom, top)), cmap=COLORS, rasterized=True)
    axes.set_facecolor("black")
