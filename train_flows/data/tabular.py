"""Tables as data sets: split, checked for columns that have no density, and the five published benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anode import InputError
from train_flows.data import published, tables
from train_flows.data.dataset import Dataset, split
from train_flows.data.tables import Table

DETERMINED = 1e-5  # of the variance of a column is left open by a linear function of the others, or less
FEW = "few distinct values, so the likelihood can grow without limit"
JITTERED = "few distinct values; jittered uniformly as wide as their smallest gap, and figures are of the jittered data"
NEAR_DISCRETE = 0.05  # fewer distinct values than this share of the rows, or one value more often


def load(path: str | Path, seed: int = 0, jitter: bool = False) -> Dataset:
    """Read a table and split it 80/10/10 by ``seed``; an NPZ file of train, validation and test keeps its split.

    Args:
        path: see :func:`train_flows.data.tables.read`.
        seed: of the split and the jitter.
        jitter: add uniform noise, as wide as the smallest gap between values, to columns of few distinct values.

    Raises:
        InputError: when the file is no table of numbers, or has constant columns.
    """
    splits = tables.read_splits(path)
    if splits is None:
        table = tables.read(path)
        train, validation, test = split(torch.from_numpy(table.values), seed)
        arrays = {"train": train.numpy(), "validation": validation.numpy(), "test": test.numpy()}
        splits = {name: Table(values, table.columns) for name, values in arrays.items()}
    return _dataset(Path(path).name, splits, seed, jitter)


def load_published(name: str, root: str | Path) -> Dataset:
    """One of the five density-estimation tables with its published preparation and split.

    Args:
        name: ``power``, ``gas``, ``hepmass``, ``miniboone`` or ``bsds300``.
        root: the folder that holds the converted files; see :mod:`train_flows.data.published`.
    """
    return _dataset(name, published.read(name, root), seed=0, jitter=False)


def _dataset(name: str, splits: Mapping[str, Table], seed: int, jitter: bool) -> Dataset:
    arrays, columns = {part: table.values for part, table in splits.items()}, splits["train"].columns
    for values in arrays.values():
        check_size(name, values, columns)
    single = arrays["train"].astype(np.float32)  # what the model will see
    check_varied(name, single.min(axis=0), single.max(axis=0), columns)
    few, spiked = repeats(single)
    found = notes(single, columns, few, spiked, JITTERED if jitter else f"{FEW}; consider --jitter")
    if jitter:
        gaps = {i: np.diff(np.unique(single[:, i])).min() for i in np.flatnonzero(few)}
        rng = np.random.default_rng(seed)
        arrays = {part: _jittered(values, gaps, rng) for part, values in arrays.items()}
    train, validation, test = (
        torch.from_numpy(arrays[part].astype(np.float32)) for part in ("train", "validation", "test")
    )
    found += repeated(train.numpy(), test.numpy())
    return Dataset(name, train, validation, test, columns, table=True, notes=found)


def check_size(name: str, values: np.ndarray, columns: tuple[str, ...]) -> None:
    """Raise an :class:`~anode.InputError` for columns beyond single precision."""
    large = np.abs(values).max(axis=0, initial=0) > np.finfo(np.float32).max
    if large.any():
        raise InputError(f"{name}: {_names(columns, large)} is too large for single precision: rescale such columns")


def check_varied(name: str, low: np.ndarray, high: np.ndarray, columns: tuple[str, ...]) -> None:
    """Raise an :class:`~anode.InputError` for columns whose smallest and largest value are one."""
    constant = low == high
    if constant.any():
        raise InputError(
            f"{name}: {_names(columns, constant)} is constant in single precision and has no density: "
            "drop or rescale such columns"
        )


def far_from_zero(train: np.ndarray, columns: tuple[str, ...]) -> tuple[str, ...]:
    """A note on columns whose differences are lost in single precision."""
    std = train.std(axis=0)
    flags = (np.abs(train.mean(axis=0)) > 1e4 * std) & (std > 0)
    what = "far from zero for its spread; subtract an offset to spare the digits of single precision"
    return (f"{_names(columns, flags)}: {what}",) if flags.any() else ()


def repeated(train: np.ndarray, test: np.ndarray) -> tuple[str, ...]:
    """A note on test rows that a model has seen."""
    rows = [row.tobytes() for row in test]
    seen = set(rows).intersection(row.tobytes() for row in train)
    count = sum(row in seen for row in rows)
    return (f"{count} of {len(test)} test rows are training rows too",) if count else ()


def left_open(train: np.ndarray) -> np.ndarray:
    """The share of the variance of every column, (D,), that a linear function of the others leaves open: 1 / (C^-1)_ii.

    C are the correlations, with eigenvalues from 1e-12, which is rounding.
    """
    eigenvalues, axes = np.linalg.eigh(np.atleast_2d(np.corrcoef(train.astype(np.float64).T)))
    return 1 / (axes**2 / np.maximum(eigenvalues, 1e-12)).sum(axis=1)


def repeats(train: np.ndarray) -> np.ndarray:
    """Which columns have few distinct values, and which others have a value that is far too common: (2, D)."""
    return np.array([_repeats(values) for values in train.T]).T


def _repeats(values: np.ndarray) -> tuple[bool, bool]:
    """Whether a column has few distinct values, and otherwise whether one value is far too common."""
    counts = np.unique(values, return_counts=True)[1]
    few = len(counts) < NEAR_DISCRETE * len(values)
    return few, not few and counts.max() > max(2, NEAR_DISCRETE * len(values))


def _jittered(values: np.ndarray, gaps: Mapping[int, float], rng: np.random.Generator) -> np.ndarray:
    values = values.copy()
    for i, gap in gaps.items():
        values[:, i] += gap * rng.uniform(-0.5, 0.5, size=len(values))
    return values


def notes(
    train: np.ndarray, columns: tuple[str, ...], few: np.ndarray, spiked: np.ndarray, few_what: str
) -> tuple[str, ...]:
    """Notes on columns under which a likelihood may mislead; of those with few distinct values, what to say is told."""
    found = (
        (few, few_what),
        (
            left_open(train) < DETERMINED,
            "almost linear in other columns, so the likelihood can grow without limit",
        ),
        (spiked, "one value is far too common, so the likelihood can grow without limit; consider dropping the column"),
    )
    said = tuple(f"{_names(columns, flags)}: {what}" for flags, what in found if flags.any())
    return said + far_from_zero(train, columns)


def _names(columns: tuple[str, ...], flags: Any) -> str:
    return ", ".join(column for column, flag in zip(columns, flags, strict=True) if flag)
