"""Grids of recorded values: find the step to which a column was rounded, fill it with noise, return to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PRECISIONS = (np.float64, np.float32)  # in which the values of a column may have been computed
ROUNDING = 8  # machine epsilons of the largest value: difference of values that are equal but for rounding
RECURRING = 0.5  # share of the rows whose value occurs again, at least
ON_GRID = 0.99  # share of the rows on the grid, at least
OFF_GRID = 1e-3  # of a step: distance from the grid that counts as none
STRAY = 0.02  # of the typical gap: values closer than that are one value
FILLED = 0.1  # share of the places of a grid that hold values, at least, between the 5% and the 95% quantile
FEW = 0.05  # distinct values for each row; with fewer of them, the step of a grid may be small
LARGE = 0.01  # of the spread: step of a grid with more distinct values, at least
BOUND = 0.02  # share of the rows at an end of the range that is a bound
DIGITS = 12  # decimals of a step that are kept
NORMAL_QUARTILES = 1.349  # distance of the quartiles of a normal distribution, in standard deviations


@dataclass(frozen=True)
class Grid:
    """The values ``origin + k * step`` for whole k.

    Attributes:
        step: distance of neighbours, in units of the column.
        origin: one of the values.
        low: smallest value of a column that ends there, such as a count or a yes-or-no; None without a bound.
        high: largest value of a column that ends there; None without a bound.
    """

    step: float
    origin: float
    low: float | None = None
    high: float | None = None

    def nearest(self, x: np.ndarray) -> np.ndarray:
        """Return the value of the grid next to each x (N,), within the bounds, float64."""
        steps = np.round((x.astype(np.float64) - self.origin) / self.step)
        values = np.round(self.origin + self.step * steps, DIGITS - math.floor(math.log10(self.step)))
        low, high = (-np.inf if self.low is None else self.low), (np.inf if self.high is None else self.high)
        return np.clip(values, low, high) + 0.0  # turns -0.0 into 0.0


def find_grid(values: np.ndarray) -> Grid | None:
    """Return the grid to which a column (N,), float64, was rounded; None unless it is plain and its step is large.

    The typical gap decides, so that a few values elsewhere, or errors of single precision, do not spoil a grid.
    """
    distinct = np.unique(values, return_counts=True)
    grids = (_of_precision(values, *distinct, precision) for precision in PRECISIONS)
    return next((grid for grid in grids if grid is not None), None)


def _of_precision(
    values: np.ndarray, found: np.ndarray, counts: np.ndarray, precision: type[np.floating]
) -> Grid | None:
    """Return the grid of a column whose distinct values, with their counts, were computed in a precision."""
    rounding, single = (ROUNDING * np.finfo(kind).eps * np.abs(values).max() for kind in (precision, np.float32))
    found, counts = _merged(found, counts, rounding)
    often = found[counts > 1]
    if len(often) < 2 or counts[counts > 1].sum() < RECURRING * len(values):
        return None
    tiny = max(rounding, STRAY * float(np.median(np.diff(often))))
    gaps = np.diff(often)
    gaps = gaps[gaps > tiny]
    step = _common_divisor(gaps, tiny)
    step = float(gaps.sum() / np.round(gaps / step).sum())  # the mean, which rounds less
    short = float(f"{step:.4g}")
    step = short if abs(short - step) * np.ptp(found) <= single * step else step
    tolerance = max(OFF_GRID * step, rounding)
    origin = float(found[counts.argmax()])
    origin = 0.0 if abs(origin - step * round(origin / step)) <= tolerance else origin
    places = np.round((values - origin) / step)
    on_grid = np.abs(values - origin - places * step) <= tolerance
    low, high = np.quantile(places, [0.05, 0.95])
    filled = len(np.unique(places[(places >= low) & (places <= high)])) / (high - low + 1)
    if tolerance > STRAY * step or on_grid.mean() < ON_GRID or filled < FILLED:
        return None
    spread = min(values.std(), spread_of_quartiles(values))
    if step < LARGE * spread and len(found) > FEW * len(values):
        return None
    bounds = (
        float(end) if end == 0 or len(found) == 2 or count >= BOUND * len(values) else None
        for end, count in ((found[0], counts[0]), (found[-1], counts[-1]))
    )
    return Grid(step, origin, *bounds)


def spread_of_quartiles(x: np.ndarray) -> np.ndarray:
    """Return the standard deviation of a normal distribution with the quartiles of columns (N, ...)."""
    return np.subtract(*np.quantile(x, [0.75, 0.25], axis=0)) / NORMAL_QUARTILES


def _merged(found: np.ndarray, counts: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Return increasing values with their counts, where each is one of several that are close to each other."""
    starts = np.flatnonzero(np.diff(found, prepend=-np.inf) > tolerance)
    return found[starts], np.add.reduceat(counts, starts)


def _common_divisor(gaps: np.ndarray, tiny: float) -> float:
    """Return the largest number that divides all gaps but for remainders of at most ``tiny``, by Euclid's algorithm."""
    step = gaps.min()
    while (rest := np.abs(gaps - step * np.round(gaps / step))).max() > tiny:
        step = rest[rest > tiny].min()
    return float(step)
