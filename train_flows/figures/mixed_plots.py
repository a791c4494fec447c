"""Figures of tables with categories and gaps: arrays in, matplotlib figures out; no model is touched.

Rows are numbers (N, D): values, codes of categories, NaN for a missing cell. ``categories`` has the names of the codes
of columns that hold categories, ``log`` the names of columns on logarithmic axes, ``dates`` of days since 1970.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from train_flows.figures import plots
from train_flows.figures.table_plots import INCHES, MANY, PAIRS, dependent_pairs

Array = np.ndarray
POINTS = 1500  # of a set in a panel, at most
BARS = 12  # of a category, at most; the last one stands for all others
COLORED = len(plots.LINE_COLORS)  # categories that a corner plot tells apart by colour, at most
JITTER = 0.3  # of points within their category, on either side
PANELS, PER_ROW = 40, 4  # of marginals
MISSING, OTHERS = "missing", "others"
GRAY = "0.6"
WIDE = 12  # columns of the oddest rows, at most
LETTERS = 14  # of a cell, at most


@dataclass(frozen=True)
class _Axis:
    """One column of data and samples, as both are drawn: names of categories, or limits of numbers."""

    name: str
    names: tuple[str, ...]
    log: bool
    low: float
    high: float
    is_date: bool = False

    @classmethod
    def of(cls, x: Array, name: str, names: Sequence[str], log: bool, is_date: bool = False) -> _Axis:
        if names:
            names = [*names, MISSING] if np.isnan(x).any() else names
            return cls(name, tuple(names), False, -0.6, len(names) - 0.4)
        x = x[np.isfinite(x) & ((x > 0) | (not log))]
        log = log and len(x) > 0 and x.min() < x.max()
        if not len(x):
            return cls(name, (), log, 0.0, 1.0, is_date)
        low, high = (float(end.item()) for end in plots.limits(np.log(x) if log else x))
        low, high = (math.exp(max(low, -700)), math.exp(min(high, 700))) if log else (low, high)
        return cls(name, (), log, low, high, is_date)

    def values(self, x: Array) -> Array:
        """Return cells (N,) as they are drawn: those of categories with a place for missing ones."""
        return np.where(np.isnan(x), len(self.names) - 1, x) if self.names else x

    def finish(self, axes: Axes, which: str, labelled: bool, letters: int = 18) -> None:
        """Set scale, limits and ticks of the abscissa "x", which is some letters wide, or the ordinate "y"."""
        getattr(axes, f"set_{which}scale")("log" if self.log else "linear")
        getattr(axes, f"set_{which}lim")(self.low, self.high)
        axis = getattr(axes, f"{which}axis")
        if self.names:
            texts = [plots.axis_label(name, 12) for name in self.names] if len(self.names) <= BARS else []
            upright = which == "x" and sum(len(text) + 2 for text in texts) > letters
            axis.set_ticks(range(len(texts)), texts, rotation=90 if upright else 0)
        elif self.log:
            few = self.high / self.low < 50
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=4))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(NullLocator())
        elif self.is_date:
            axis.set_major_locator(locator := AutoDateLocator(minticks=2, maxticks=4))
            axis.set_major_formatter(ConciseDateFormatter(locator))
        else:
            axis.set_major_locator(MaxNLocator(3 if which == "x" else 4))
        if not labelled:
            axis.set_tick_params(**{"labelbottom" if which == "x" else "labelleft": False})


def corner(
    data: Array,
    samples: Array,
    columns: Sequence[str],
    categories: Mapping[str, Sequence[str]],
    log: Collection[str] = (),
    dates: Collection[str] = (),
) -> Figure:
    """Draw pairs of columns: data below the diagonal, samples above it, and the marginals on it.

    Colours show the category with at most seven names that the other columns depend on most. Of more than seven
    columns, six are shown, which the figure says.

    Args:
        data: rows (N, D).
        samples: rows (M, D).
        columns: names of the D columns.
        categories: columns to the names of their codes.
        log: columns with logarithmic axes.
        dates: columns of days since 1970.
    """
    by = _coloring(data, columns, categories)
    shown = np.arange(len(columns))
    if len(shown) > MANY:
        shown = np.sort(dependent_pairs(_filled(data)).ravel())
    names = [columns[j] for j in shown]
    axis = [
        _Axis.of(data[:, j], name, categories.get(name, ()), name in log, name in dates)
        for j, name in zip(shown, names, strict=True)
    ]
    side = INCHES * len(shown) + 1.5
    figure = Figure(figsize=(side, side + 0.5), layout="constrained")
    panels = figure.subplots(len(shown), len(shown), squeeze=False)
    points = min(POINTS, len(data), len(samples))
    parts = [_scattered(x, points, by) for x in (data, samples)]
    for (i, j), axes in np.ndenumerate(panels):
        if i == j:
            _marginal(axes, axis[j], data[:, shown[j]], samples[:, shown[j]], ("0.75", "black"))
            axes.set_yticks([])
        else:
            x, kinds = parts[i < j]
            pair = [_jittered(axis[k], x[:, shown[k]], seed) for seed, k in enumerate((j, i))]
            colors = [GRAY if k < 0 else plots.LINE_COLORS[int(k)] for k in kinds]
            size = plots.marker_size(len(x))
            axes.scatter(*pair, s=size, c=colors, lw=0, alpha=0.7, rasterized=True)
            axis[i].finish(axes, "y", labelled=j == 0)
            if i == 0 and j == len(shown) - 1:  # the panel on the diagonal shows shares
                axes.yaxis.set_tick_params(labelright=True, right=True, left=False)
        axis[j].finish(axes, "x", labelled=i == len(shown) - 1)
        axes.tick_params(labelsize="small")
        if j == 0:
            axes.set_ylabel(plots.axis_label(axis[i].name))
        if i == len(shown) - 1:
            axes.set_xlabel(plots.axis_label(axis[j].name))
    figure.align_labels()
    handles: list[Patch | Line2D] = [
        Patch(color="0.75", label=f"data ({len(data):,}), below"),
        Line2D([], [], color="black", label=f"samples ({len(samples):,}), above"),
    ]
    for color, name in zip(plots.LINE_COLORS, () if by is None else categories[columns[by]], strict=False):
        label = plots.plain(f"{columns[by or 0]}: {name}")
        handles.append(Line2D([], [], ls="", marker="o", color=color, label=label))
    notes = [f"{points:,} points of each in the panels of pairs"] if len(shown) > 1 else []
    if len(shown) < len(columns):
        notes.insert(0, f"{len(shown)} of {len(columns)} columns: the {PAIRS} pairs that depend most on each other")
    title = "\n".join(notes)
    figure.legend(handles=handles, loc="outside upper center", ncols=max(2, len(shown) - 2), title=title, frameon=False)
    return figure


def marginals(
    data: Array,
    samples: Array,
    columns: Sequence[str],
    categories: Mapping[str, Sequence[str]],
    log: Collection[str] = (),
    dates: Collection[str] = (),
) -> Figure:
    """Draw the marginals of data (N, D) and samples (M, D): histograms of numbers, bars of categories.

    The shares of missing cells, and of cells that a logarithmic axis cannot show, stand above the panel. At most 40
    columns are shown, which the figure says.
    """
    count = min(PANELS, len(columns))
    per_row = min(PER_ROW, count)
    height = -(-count // per_row)
    figure = Figure(figsize=(3 * per_row, 2.5 * height + 0.6), layout="constrained")
    panels = figure.subplots(height, per_row, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.remove()
    for axes, name, x, y in zip(panels, columns, data.T, samples.T, strict=False):
        axis = _Axis.of(x, name, categories.get(name, ()), name in log, name in dates)
        axis, x, y = _largest(axis, x, y)
        _marginal(axes, axis, x, y, plots.LINE_COLORS[:2])
        axis.finish(axes, "x", labelled=True, letters=36)
        axes.tick_params(labelsize="small")
        axes.set_yticks([])
        axes.set_ylim(0, None)
        axes.set_xlabel(plots.axis_label(name, 32))
        axes.set_title("\n".join(_notes(axis, x, y)), fontsize="small")
    handles = [
        Patch(color=plots.LINE_COLORS[0], alpha=0.4, label=f"data ({len(data):,})"),
        Patch(fill=False, edgecolor=plots.LINE_COLORS[1], lw=1.8, label=f"samples ({len(samples):,})"),
    ]
    title = f"{count} of {len(columns)} columns" if count < len(columns) else ""
    figure.legend(handles=handles, loc="outside upper center", ncols=2, title=title, frameon=False)
    return figure


def oddest(
    cells: Sequence[Sequence[str]],
    columns: Sequence[str],
    rows: Sequence[str],
    percentiles: Sequence[float],
    surprising: Sequence[int],
) -> Figure:
    """Draw the oddest rows of a table as a table, in which the most surprising cell of each row is marked.

    Of more than twelve columns, those are shown that are marked in some row, and then the first ones.

    Args:
        cells: texts of the cells (n, D), the oddest row first; empty if missing.
        columns: names of the D columns.
        rows: names or numbers of the n rows.
        percentiles: of the rows' log-densities among training rows, 0 to 100.
        surprising: the column of each row that is most surprising given the others.
    """
    marked = list(dict.fromkeys(surprising))
    shown = sorted([*marked, *(j for j in range(len(columns)) if j not in marked)][:WIDE])
    head = ["row", "percentile", *(plots.axis_label(columns[j], LETTERS) for j in shown)]
    texts = [
        [row, f"{percentile:.3g}", *(_short(line[j]) for j in shown)]
        for row, percentile, line in zip(rows, percentiles, cells, strict=True)
    ]
    widths = [
        max(len(part) for text in column for part in text.split("\n")) + 2 for column in zip(head, *texts, strict=True)
    ]
    figure = Figure(figsize=(0.095 * sum(widths) + 0.4, 0.3 * len(texts) + 1.3), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    drawn = axes.table(texts, colLabels=head, colWidths=[w / sum(widths) for w in widths], bbox=Bbox.unit())
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9)
    lines = max(text.count("\n") for text in head) + 1
    for (i, j), cell in drawn.get_celld().items():
        cell.set(edgecolor="0.85", height=(1 + 0.6 * (lines - 1) * (i == 0)) / (len(texts) + 1))
        cell.get_text().set_horizontalalignment("center")
        if i == 0:
            cell.set(facecolor="0.93")
        elif j >= 2 and shown[j - 2] == surprising[i - 1]:
            cell.set(facecolor=plots.LINE_COLORS[1], alpha=0.6)
            cell.get_text().set_fontweight("bold")
    left_out = f"; {len(shown)} of {len(columns)} columns" if len(shown) < len(columns) else ""
    axes.set_title(f"oddest rows, most surprising cell marked{left_out}", fontsize="medium")
    return figure


def _short(text: str) -> str:
    text = text or MISSING
    return plots.plain(text if len(text) <= LETTERS else f"{text[: LETTERS - 3]}...")


def _coloring(data: Array, columns: Sequence[str], categories: Mapping[str, Sequence[str]]) -> int | None:
    """Return the category of few names that explains most of the variance of the ranks of the other columns."""
    x = _filled(data)
    ranks = x.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    _, d = ranks.shape
    best, by = -1.0, None
    for j, name in enumerate(columns):
        if 2 <= len(categories.get(name, ())) <= COLORED and d > 1:
            groups = [ranks[data[:, j] == k] for k in range(len(categories[name]))]
            between = sum(len(group) * (group.mean(axis=0) - ranks.mean(axis=0)) ** 2 for group in groups if len(group))
            share = np.delete(between / (len(ranks) * np.maximum(ranks.var(axis=0), 1e-9)), j).mean()
            best, by = max((best, by), (float(share), j), key=lambda pair: pair[0])
    return by


def _filled(x: Array) -> Array:
    """Return rows (N, D) with the median of their column in place of missing cells."""
    known = [column[~np.isnan(column)] for column in x.T]
    return np.where(np.isnan(x), [np.median(column) if len(column) else 0.0 for column in known], x)


def _scattered(x: Array, count: int, by: int | None) -> tuple[Array, Array]:
    """Return the rows that are drawn, in random order, with the codes of their colours; -1 if missing."""
    x = np.random.default_rng(0).permutation(x)[:count]
    return x, np.zeros(len(x)) if by is None else np.nan_to_num(x[:, by], nan=-1)


def _jittered(axis: _Axis, x: Array, seed: int) -> Array:
    """Return cells (N,) as they are drawn, those of categories apart from each other."""
    noise = np.random.default_rng(seed).uniform(-JITTER, JITTER, len(x))
    return axis.values(x) + noise if axis.names else x


def _largest(axis: _Axis, x: Array, y: Array) -> tuple[_Axis, Array, Array]:
    """Return a category of many names with its most frequent ones and one name for all others."""
    if len(axis.names) <= BARS:
        return axis, x, y
    kept = np.argsort(-np.bincount(axis.values(x).astype(int), minlength=len(axis.names)), kind="stable")[: BARS - 1]
    codes = np.full(len(axis.names), BARS - 1.0)
    codes[kept] = np.arange(BARS - 1)
    names = (*(axis.names[k] for k in kept), OTHERS)
    found = [codes[axis.values(part).astype(int)] for part in (x, y)]
    return _Axis(axis.name, names, False, -0.6, BARS - 0.4), *found


def _marginal(axes: Axes, axis: _Axis, x: Array, y: Array, colors: Sequence[str]) -> None:
    """Draw the histogram or the bars of the data (N,), filled, and of samples (M,), as an outline."""
    if axis.names:
        for part, color, filled in zip((x, y), colors, (True, False), strict=True):
            codes = axis.values(part)
            known = codes[(codes >= 0) & (codes < len(axis.names))].astype(int)
            shares = np.bincount(known, minlength=len(axis.names)) / max(1, len(part))
            outline: dict[str, Any] = {"fill": False, "edgecolor": color, "lw": 1.8}
            axes.bar(range(len(shares)), shares, 0.8, **({"color": color, "alpha": 0.4} if filled else outline))
        return
    count = int(np.clip(2 * len(x) ** (1 / 3), 8, 60))
    edges = (np.geomspace if axis.log else np.linspace)(axis.low, axis.high, count + 1)
    for part, color, filled in zip((x, y), colors, (True, False), strict=True):
        shares = np.histogram(part[np.isfinite(part)], edges)[0] / max(1, len(part))
        if filled:
            axes.stairs(shares, edges, fill=True, color=color, alpha=0.4)
        else:
            axes.stairs(shares, edges, color=color, lw=1.8)


def _notes(axis: _Axis, x: Array, y: Array) -> list[str]:
    """Return the shares of cells of data and samples that a panel of numbers does not show."""
    found = []
    if not axis.names:
        parts = {MISSING: [np.isnan(part).mean() for part in (x, y)]}
        if axis.log:
            parts["at most 0"] = [(part <= 0).mean() for part in (x, y)]
        found = [f"{what}: data {a:.1%}, samples {b:.1%}" for what, (a, b) in parts.items() if a or b]
    return found
