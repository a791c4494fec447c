"""Tables as data sets: split, checked for columns that have no density, and the five published benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from anode import InputError
from train_flows.data import published, tables
from train_flows.data.dataset import Dataset, split
from train_flows.data.tables import Table

NEAR_DISCRETE = 0.05  # fewer distinct values, or one value more often, than this share of the rows


def load(path: str | Path, seed: int = 0, jitter: bool = False) -> Dataset:
    """Read a table and split it 80/10/10 by ``seed``; an NPZ file of train, validation and test keeps its split.

    Args:
        path: see :func:`train_flows.data.tables.read`.
        seed: of the split and the jitter.
        jitter: add uniform noise as wide as the smallest gap between values to columns of few distinct values.

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
    train, columns = splits["train"]
    constant = [column for column, values in zip(columns, train.T, strict=True) if np.ptp(values) == 0]
    if constant:
        raise InputError(f"{name}: {', '.join(constant)} is constant and has no density: drop such columns")
    notes = _precision_notes(train, columns)
    arrays = {part: table.values for part, table in splits.items()}
    discrete = [i for i, values in enumerate(train.T) if _near_discrete(values)]
    if discrete and jitter:
        rng = np.random.default_rng(seed)
        gaps = {i: np.diff(np.unique(train[:, i])).min() for i in discrete}
        arrays = {part: _jittered(values, gaps, rng) for part, values in arrays.items()}
    if discrete:
        names = ", ".join(columns[i] for i in discrete)
        what = (
            "uniform jitter as wide as the smallest gap was added, and figures are of the jittered data"
            if jitter
            else "the likelihood can grow without limit; consider --jitter"
        )
        notes.append(f"{names}: few distinct values; {what}")
    train, validation, test = (
        torch.from_numpy(arrays[part].astype(np.float32)) for part in ("train", "validation", "test")
    )
    return Dataset(name, train, validation, test, columns, table=True, notes=tuple(notes))


def _near_discrete(values: np.ndarray) -> bool:
    counts = np.unique(values, return_counts=True)[1]
    return len(counts) < NEAR_DISCRETE * len(values) or counts.max() > NEAR_DISCRETE * len(values)


def _jittered(values: np.ndarray, gaps: Mapping[int, float], rng: np.random.Generator) -> np.ndarray:
    values = values.copy()
    for i, gap in gaps.items():
        values[:, i] += gap * rng.uniform(-0.5, 0.5, size=len(values))
    return values


def _precision_notes(train: np.ndarray, columns: tuple[str, ...]) -> list[str]:
    coarse = np.abs(train.mean(0)) > 1e4 * train.std(0)
    names = [column for column, flag in zip(columns, coarse, strict=True) if flag]
    return [f"{', '.join(names)}: far from zero for its spread; subtract an offset to spare float32's digits"] * bool(
        names
    )
