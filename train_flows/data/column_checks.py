"""Checks of columns: those without a density are refused, and notes name those whose likelihood may mislead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from anode import InputError
from train_flows.data import tables
from train_flows.data.dataset import abbreviate
from train_flows.data.grids import Grid, spread_of_quartiles

UNEXPLAINED = 1e-5  # share of the variance of a column, below which other columns determine it
NEAR_DISCRETE = 0.05  # fewer distinct values than this share of the rows, or one value more often
HEAVY = 10  # standard deviations for one of the normal distribution with the same quartiles
FAR = 5  # such standard deviations between a repeated value and all others
FAR_ROWS, FAR_SHARE = 5, 0.005  # rows, and share of the rows, that hold that value, at least
LOST_DIGITS = 1e-3  # rounding of the data in standard deviations
FUNCTION_SHARE = 0.9  # of the rows in which a column follows from another one
FUNCTION_ROWS, FUNCTION_WORK = 2000, 5e7  # rows in which functions are looked for; rows times columns squared
QUADRATIC_COLUMNS = 20  # at most, for quadratic functions of all others
WITHOUT_LIMIT = "so the likelihood can grow without limit"
NAMES = {torch.float32: "single precision", torch.float64: "double precision"}


def check_range(name: str, values: np.ndarray, columns: Sequence[str], dtype: torch.dtype = torch.float32) -> None:
    """Raise an :class:`anode.InputError` for columns of values (N, D) beyond a precision."""
    large = np.abs(values).max(axis=0, initial=0) > torch.finfo(dtype).max
    if large.any():
        raise InputError(f"{name}: {flagged(columns, large)} is too large for {NAMES[dtype]}: rescale such columns")


def check_constant(name: str, train: np.ndarray, columns: Sequence[str], dtype: torch.dtype) -> None:
    """Raise an :class:`anode.InputError` for columns of training rows (N, D), float64, that hold a single value."""
    constant = np.ptp(train, axis=0) == 0
    if constant.any():
        raise InputError(
            f"{name}: {flagged(columns, constant)} is constant and does not have a density: drop such columns"
        )
    constant = np.ptp(_rounded(train, dtype), axis=0) == 0
    if constant.any():
        remedy = "or pass --dtype float64" if dtype == torch.float32 else "and save the differences"
        raise InputError(
            f"{name}: {flagged(columns, constant)} is constant in {NAMES[dtype]}: subtract an offset, rescale, {remedy}"
        )


def grid_note(columns: Sequence[str], grids: Mapping[str, Grid], jitter: bool) -> tuple[str, ...]:
    """Return a note on columns that were rounded to a grid."""
    if not grids:
        return ()
    names = abbreviate([f"{column} ({grids[column].step:.4g})" for column in columns if column in grids])
    if not jitter:
        return (f"{names}: on a grid of the step in brackets, and no noise is added, {WITHOUT_LIMIT}",)
    return (
        f"{names}: on a grid of the step in brackets; uniform noise that wide is added, figures are of the data with "
        "noise, and samples return to the grid; --no-jitter turns this off",
    )


def notes(train: np.ndarray, columns: Sequence[str], known: Mapping[str, Grid]) -> tuple[str, ...]:
    """Return notes on columns of training rows (N, D), float64, whose likelihood may mislead.

    Columns of known grids are left to :func:`grid_note`.
    """
    counts = [np.unique(values, return_counts=True)[1] for values in train.T]
    other = np.array([column not in known for column in columns])
    few = np.array([len(count) < NEAR_DISCRETE * len(train) for count in counts]) & other
    common = np.array([_most_common(values) > max(2, NEAR_DISCRETE * len(train)) for values in train.T]) & other
    z = _standardised(train)
    wide = len(train) <= train.shape[1]
    linear = np.zeros_like(few) if wide else _unexplained(z) < UNEXPLAINED
    functions = _functions(z) & ~linear & ~few
    found = (
        (
            few,
            f"few distinct values, {WITHOUT_LIMIT}; pass --kind NAME=category, or --given, or drop such columns",
        ),
        (linear, f"almost linear in other columns, {WITHOUT_LIMIT}; drop such columns"),
        (functions, f"almost a function of other columns, {WITHOUT_LIMIT}; drop such columns"),
        (
            common & ~few,
            f"one value is far too common, {WITHOUT_LIMIT}; add noise, or learn the other rows alone",
        ),
    )
    said = [f"{flagged(columns, flags)}: {what}" for flags, what in found if flags.any()]
    if wide:
        said.append(
            f"fewer training rows ({len(train)}) than columns ({train.shape[1]}), which do not determine a covariance"
        )
    return tuple(said)


def scale_notes(train: np.ndarray, columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return columns of training rows (N, D), float64, whose standard deviation a few rows set, and notes on them."""
    codes: dict[float, dict[str, float]] = {}  # shares of the rows by value and column
    heavy, notes = [], []
    for column, values, spread in zip(columns, train.T, spread_of_quartiles(_standardised(train)), strict=True):
        far = _far_values(values)
        for value, share in far.items():
            codes.setdefault(value, {})[column] = share
        if 0 < spread < 1 / HEAVY and not far:
            heavy.append(column)
    for value, shares in codes.items():
        most = f"{'up to ' if len(shares) > 1 else ''}{max(shares.values()):.1%}"
        what = "is far from all other values, as a code for missing ones is; drop those rows"
        notes.append(f"{abbreviate([*shares])}: {value:.6g} in {most} of the rows {what}")
    if heavy:
        what = "a few rows set the standard deviation; take the logarithm, clip the values or drop those rows"
        notes.append(f"{abbreviate(heavy)}: {what}")
    coded = dict.fromkeys(column for shares in codes.values() for column in shares)
    return [*coded, *heavy], notes


def far_from_zero(train: np.ndarray, columns: Sequence[str], dtype: torch.dtype = torch.float32) -> tuple[str, ...]:
    """Return a note on columns of training rows (N, D), float64, whose differences are lost in a precision."""
    scale = np.maximum(np.abs(train).max(axis=0), np.finfo(np.float64).tiny)  # squares stay finite
    mean, std = (train / scale).mean(axis=0), (train / scale).std(axis=0)
    flags = (np.abs(mean) * torch.finfo(dtype).eps > LOST_DIGITS * std) & (std > 0)
    if not flags.any():
        return ()
    worst = int(np.where(flags, std / np.maximum(np.abs(mean), np.finfo(np.float64).tiny), np.inf).argmin())
    kept, all_of_them = (len(np.unique(x)) for x in (_rounded(train[:, worst], dtype), train[:, worst]))
    remedy = "subtract an offset" + (", or pass --dtype float64" if dtype == torch.float32 else "")
    return (
        f"{flagged(columns, flags)}: far from zero for its spread: {NAMES[dtype]} keeps {kept:,} of {all_of_them:,} "
        f"distinct values of {columns[worst]}; {remedy}",
    )


def flagged(columns: Sequence[str], flags: np.ndarray) -> str:
    """Return the first names of the columns that are flagged, (D,), for a message."""
    return abbreviate([column for column, flag in zip(columns, flags, strict=True) if flag])


def _most_common(values: np.ndarray) -> int:
    """Return the count of the most common value (N,), without codes, on which :func:`scale_notes` has a note."""
    return np.unique(values[~np.isin(values, [*_far_values(values)])], return_counts=True)[1].max()


def _rounded(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(values).to(dtype).numpy()


def _standardised(x: np.ndarray) -> np.ndarray:
    """Return columns (N, D) with mean 0 and variance 1; the squares of large and small numbers stay finite."""
    x = x / np.maximum(np.abs(x).max(axis=0), np.finfo(np.float64).tiny)
    std = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(std > 0, std, 1)


def _far_values(values: np.ndarray) -> dict[float, float]:
    """Return repeated values at the ends of a column (N,), far from all others, with their share of the rows."""
    found, counts = np.unique(values, return_counts=True)
    far = {}
    for end, neighbour in ((-1, -2), (0, 1)):
        if len(found) > 2 and max(FAR_ROWS, FAR_SHARE * len(values)) <= counts[end] < len(values) / 2:
            others = values[values != found[end]]
            spread = spread_of_quartiles(others) or others.std()
            if abs(found[end] - found[neighbour]) > FAR * spread:
                far[float(found[end])] = counts[end] / len(values)
    return far


def _unexplained(z: np.ndarray) -> np.ndarray:
    """Return the share of the variance of each standardised column, (D,), that no linear function of others explains.

    It is 1 / (C^-1)_ii for correlations C, with eigenvalues from 1e-12, which is rounding.
    """
    eigenvalues, axes = np.linalg.eigh(z.T @ z / len(z))
    return 1 / (axes**2 / np.maximum(eigenvalues, 1e-12)).sum(axis=1)


def _functions(z: np.ndarray) -> np.ndarray:
    """Return True for standardised columns, (D,), that are a function of one other or a quadratic one of the others."""
    z = z[: int(min(FUNCTION_ROWS, FUNCTION_WORK / z.shape[1] ** 2))]
    if len(z) < tables.MIN_ROWS:
        return np.zeros(z.shape[1], dtype=bool)
    limit = np.sqrt(UNEXPLAINED) * spread_of_quartiles(z)
    return _functions_of_one(z, limit) | _quadratic_functions(z, limit)


def _functions_of_one(z: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Return True for columns that neighbours interpolate within limits (D,), in the order of another column."""
    found = np.zeros(z.shape[1], dtype=bool)
    for i in range(len(found)):
        in_order = z[z[:, i].argsort()]
        left, middle, right = in_order[:-2], in_order[1:-1], in_order[2:]
        width = (right - left)[:, i : i + 1]
        share = np.divide((middle - left)[:, i : i + 1], width, out=np.full_like(width, 0.5), where=width > 0)
        near = np.abs(middle - left - share * (right - left)) < limit
        found |= (near.mean(axis=0) > FUNCTION_SHARE) & (np.arange(len(found)) != i)
    return found


def _quadratic_functions(z: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Return True for columns that a quadratic function of all others fits within limits (D,), if these are few."""
    found = np.zeros(z.shape[1], dtype=bool)
    first, second = np.triu_indices(len(found))
    if len(found) > QUADRATIC_COLUMNS or len(z) < 3 * (len(first) + len(found) + 1):
        return found
    one = np.eye(len(found))
    terms = np.hstack([np.ones((len(z), 1)), z, z[:, first] * z[:, second]])
    terms /= np.maximum(np.sqrt(np.mean(terms**2, axis=0)), np.finfo(np.float64).tiny)
    uses = np.vstack([0 * one[:1], one, one[first] + one[second]])  # the columns in each term
    gram = terms.T @ terms + 1e-10 * len(z) * np.eye(terms.shape[1])  # for terms that depend on each other
    for i in range(len(found)):
        others = np.flatnonzero(uses[:, i] == 0)
        weights = np.linalg.solve(gram[np.ix_(others, others)], terms[:, others].T @ z[:, i])
        found[i] = np.sqrt(np.mean((z[:, i] - terms[:, others] @ weights) ** 2)) < limit[i]
    return found
