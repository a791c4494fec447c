"""The scale of a column of numbers: its bounds, its atoms, the step of its grid, and whether logarithms suit it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from anode import InputError
from cnf.tables.columns import Column, Kind, Scale
from train_flows.data.frames import row_of
from train_flows.data.grids import NORMAL_QUARTILES, find_grid, spread_of_quartiles

Bounds = tuple[float | None, float | None]
MAX_CATEGORIES = 10  # distinct numbers that are categories, at most
COMMON, APART, MAX_COMMON = 0.05, 4, 3  # share of the rows of an atom; times the next count; how many atoms there are
ROUGH = 0.2  # share of the rows by which counts on a grid are off a smooth curve, beyond chance
RECURRING_ROWS, MAX_RECURRING, MOST = 20, 300, 0.5  # rows of a value, at least; such values, at most; their share
ISOLATED_ROWS, ISOLATED_STEPS = 5, 10  # rows of a value far from others, and typical gaps to the median, at least
SKEWED, LESS_SKEWED = 0.25, 0.6  # skewness of quantiles; share of it that the logarithms may have
DECADES = 3  # times the 5% quantile of such values is below their 95% quantile
NEAR_ZERO = 0.05  # of the median: values below that reach the bound 0
FILLED = 0.05  # of an interval: values within that distance of its ends reach them
REACHING = 0.002  # share of the rows, at least, whose values reach a bound
INTERVALS = (1.0, 100.0)  # upper ends of proportions and percentages
ONE_SIDED = 0.35  # skewness of quantiles, beyond which only one tail is long
TAILS, EXTREME = 8.0, 100.0  # (q99 - q1) / (q75 - q25), 3.4 if normal; extremes in standard deviations of the quartiles
LARGEST_WHOLE = 2.0**53


def number_column(
    name: str, series: pd.Series, values: np.ndarray, kind: str | None = None, bounds: Bounds = (None, None)
) -> tuple[Column, tuple[str, ...]]:
    """Find how a model should see a column of numbers.

    Args:
        name: of the table, for errors.
        series: the column.
        values: its cells (N,), NaN if missing.
        kind: continuous, positive, bounded or ordinal, if the user says so.
        bounds: lower and upper bound, if the user says so.

    Returns:
        The column, and notes about it.

    Raises:
        InputError: if the kind or the bounds do not suit a value.
    """
    column, x, asked = str(series.name), values[~np.isnan(values)], bounds != (None, None)
    if kind == "ordinal" and (x != np.round(x)).any():
        _refuse(name, series, values != np.round(values), "is not a whole number, which --kind ordinal needs")
    low, high = bounds if asked else _natural_bounds(x, kind)
    outside = (values < (-np.inf if low is None else low)) | (values > (np.inf if high is None else high))
    if outside.any():
        what = f"is out of bounds ({_end(low)}:{_end(high)})"
        _refuse(name, series, outside, what, f"pass other ones by --bounds {column}=LOW:HIGH")
    if kind == "bounded" and (low is None or high is None):
        raise InputError(f"{name}: column {column} needs two bounds to be bounded: pass --bounds {column}=LOW:HIGH")
    whole = kind != "continuous" and is_whole(x)
    atoms = () if kind == "continuous" else _atoms(x)
    rest = x[~np.isin(x, atoms)]
    step, origin = grid_of(rest, whole)
    scale: Scale = "linear"
    if kind != "continuous" or asked:
        scale = _scale(rest, low, high, kind, asked)
    if scale in ("log", "logit"):
        ends = [end for end in (low, high if scale == "logit" else None) if end is not None and step == 0]
        atoms = tuple(sorted({*atoms, *(end for end in ends if (rest == end).any())}))
    elif not asked:
        low, high = (0.0 if _fills_from_zero(rest) and step else None), None
    on_scale = rest[~np.isin(rest, atoms)]
    if len(on_scale) == 0:
        raise InputError(f"{name}: column {column} holds only its bounds: pass --kind {column}=category")
    if kind is None:
        atoms = tuple(sorted({*atoms, *recurring_values(on_scale, step)}))
    notes, center, spread = (), 0.0, 1.0
    if scale == "asinh":
        center = float(np.median(on_scale))
        spread = float(spread_of_quartiles(on_scale)) or float(on_scale.std())
        farthest = np.abs(on_scale - center).max() / spread
        notes = (
            f"{column}: heavy tails, up to {farthest:.3g} standard deviations of the quartiles: on an asinh scale",
        )
    of_scales: dict[Scale, Kind] = {"log": "positive", "logit": "bounded"}
    named = "ordinal" if whole else of_scales.get(scale, "continuous")
    found = Column(column, named, (), scale, low, high, center, spread, atoms, step, origin)
    return found, notes


def is_whole(x: np.ndarray) -> bool:
    """Return True for whole numbers that a float holds exactly."""
    return bool((x == np.round(x)).all() and np.abs(x).max(initial=0) < LARGEST_WHOLE)


def _refuse(name: str, series: pd.Series, flags: np.ndarray, what: str, remedy: str = "pass another --kind") -> None:
    flags = flags & series.notna().to_numpy()
    value = series.iloc[int(flags.argmax())]
    raise InputError(f"{name}: column {series.name}: {value} ({row_of(series, flags)}) {what}: {remedy}")


def _end(bound: float | None) -> str:
    return "" if bound is None else f"{bound:g}"


def _natural_bounds(x: np.ndarray, kind: str | None) -> Bounds:
    """Return 0 for values that are not negative, and the end of the interval from 0 that they fill, if any."""
    if x.min() < 0 or kind == "continuous":
        return (0.0, None) if kind == "positive" else (None, None)
    for high in INTERVALS:
        shares = (x < FILLED * high).mean(), ((x > (1 - FILLED) * high) & (x <= high)).mean()
        fills = min(shares) > REACHING and x.max() <= high
        if kind == "bounded" and x.max() <= high:
            return 0.0, high
        if kind is None and fills and not is_whole(x):
            return 0.0, high
    return 0.0, None


def _atoms(x: np.ndarray) -> tuple[float, ...]:
    """Return values that are far more common than all others, and repeated ones at the ends, far from all others."""
    found, counts = np.unique(x, return_counts=True)
    atoms, far = common_values(found, counts), True
    while far:
        kept = ~np.isin(found, [*atoms])
        far = _isolated_ends(found[kept], counts[kept])
        atoms |= far
    return tuple(sorted(atoms))


def common_values(found: np.ndarray, counts: np.ndarray) -> set[float]:
    """Return the values, among different ones with their counts, that are far more common than all others."""
    order = np.argsort(-counts)
    for k in range(min(MAX_COMMON, len(found) - 2), 0, -1):
        least, following = counts[order[k - 1]], counts[order[k]]
        if least > COMMON * counts.sum() and least > APART * following:
            return set(found[order[:k]].tolist())
    return set()


def _isolated_ends(found: np.ndarray, counts: np.ndarray) -> set[float]:
    """Return repeated first and last values, with more rows than twice those up to half of the way to the median."""
    far = set()
    for end, others in ((0, slice(1, None)), (-1, slice(None, -1))):
        if len(found) > MAX_CATEGORIES and counts[end] >= ISOLATED_ROWS:
            values, rows = found[others], counts[others]
            middle = values[np.searchsorted(rows.cumsum(), rows.sum() / 2)]
            half = abs(middle - found[end]) / 2
            between = rows[np.abs(values - found[end]) < half].sum()
            if 2 * between < counts[end] and half > ISOLATED_STEPS * np.median(np.diff(values)) / 2:
                far.add(float(found[end]))
    return far


def recurring_values(x: np.ndarray, step: float) -> list[float]:
    """Return the frequent values on a grid, if their counts are far from smooth, as with a favour for round numbers.

    Counts, but for two at either end, are compared with cubic interpolation of the two on either side; chance explains
    a part of the difference.
    """
    found, rows = np.unique(x, return_counts=True)
    places = np.round((found - found[0]) / step).astype(np.int64) if step else np.array([])
    if step == 0 or len(found) <= MAX_CATEGORIES or places[-1] > len(x):
        return []
    counts = np.bincount(places, rows)
    between = np.convolve(counts, np.array([-1, 4, 0, 4, -1]) / 6, mode="valid").clip(0)
    counts = counts[2:-2]
    chance = math.sqrt(2 / math.pi) * np.sqrt(counts + 0.94 * between)
    if (np.abs(counts - between) - chance).sum() < ROUGH * len(x):
        return []
    frequent = rows >= max(RECURRING_ROWS, np.sort(rows)[-MAX_RECURRING:][0])
    return found[frequent].tolist() if rows[frequent].sum() > MOST * len(x) else []


def grid_of(x: np.ndarray, whole: bool) -> tuple[float, float]:
    """Return the step and the origin of the values: whole numbers always have them, others on a plain grid."""
    if whole:
        first = x.min()
        step = float(np.gcd.reduce((x - first).astype(np.int64))) or 1.0
        return step, 0.0 if first % step == 0 else float(first)
    grid = find_grid(x)
    return (0.0, 0.0) if grid is None else (grid.step, grid.origin)


def _scale(x: np.ndarray, low: float | None, high: float | None, kind: str | None, asked: bool) -> Scale:
    if low is not None and high is not None:
        return "logit"
    if low is not None and (asked or kind == "positive" or _suits_logarithms(x - low)):
        return "log"
    return "asinh" if _is_heavy_tailed(x) else "linear"


def _suits_logarithms(x: np.ndarray) -> bool:
    """Return True for values (N,) that are not negative and reach 0, or whose logarithms are far more symmetric."""
    inside = x[x > 0]
    if len(inside) == 0:
        return False
    low, high = _quantiles(inside, 0.05, 0.95)
    skewness = _skewness(inside)
    skewed = skewness > SKEWED and high > DECADES * low and abs(_skewness(np.log(inside))) < LESS_SKEWED * skewness
    return bool(skewed or (not is_whole(x) and (x < NEAR_ZERO * np.median(x)).mean() > REACHING))


def _fills_from_zero(x: np.ndarray) -> bool:
    return bool(x.min() >= 0 and _quantiles(x, 0.05)[0] < 0.2 * np.median(x))


def _skewness(x: np.ndarray) -> float:
    """Return (q95 + q5 - 2 q50) / (q95 - q5) of the quantiles, between -1 and 1; 0 if symmetric."""
    low, middle, high = _quantiles(x, 0.05, 0.5, 0.95)
    return float((high + low - 2 * middle) / (high - low)) if high > low else 0.0


def _is_heavy_tailed(x: np.ndarray) -> bool:
    """Return True for values (N,) with heavy tails on both sides, or with gross outliers."""
    low, q1, middle, q3, high = _quantiles(x, 0.01, 0.25, 0.5, 0.75, 0.99)
    if q3 == q1:
        return False
    farthest = max(x.max() - middle, middle - x.min()) * NORMAL_QUARTILES / (q3 - q1)
    return bool(farthest > EXTREME or ((high - low) / (q3 - q1) > TAILS and abs(_skewness(x)) < ONE_SIDED))


def _quantiles(x: np.ndarray, *shares: float) -> list[float]:
    """Return quantiles of values (N,), as np.quantile does, for tables of thousands of columns."""
    return np.interp(np.array(shares) * (len(x) - 1), np.arange(len(x)), np.sort(x)).tolist()
