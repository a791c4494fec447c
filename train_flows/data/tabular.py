"""Tables as data sets: splits, large files that stay on disk, columns of classes, and warnings about columns."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from anode import InputError
from train_flows.data import benchmark_tables, tables
from train_flows.data.dataset import (
    MAX_HEAD,
    Dataset,
    Split,
    abbreviate,
    class_order,
    finite_number,
    three_splits,
)

MIN_ROWS = {"all": tables.MIN_ROWS, "train": tables.MIN_ROWS, "validation": 2, "test": 2}
UNEXPLAINED = 1e-5  # share of the variance of a column, below which other columns determine it
NEAR_DISCRETE = 0.05  # fewer distinct values than this share of the rows, or one value more often
MISSING = ("", "nan", "NaN", "NA", "N/A", "null", "None")  # among class names that are numbers
CHUNK_ROWS = 50_000  # rows of a mapped table that are checked together
WITHOUT_LIMIT = "so the likelihood can grow without limit"
FEW_VALUES = f"few distinct values, {WITHOUT_LIMIT}; consider --jitter"
JITTERED = (
    "few distinct values; uniform noise as wide as their smallest gap is added, and figures are of the jittered data"
)


def load(
    path: str | Path, seed: int = 0, jitter: bool = False, context: Sequence[str] = (), split: bool = True
) -> Dataset:
    """Read a table to learn its density; the arguments are those of :func:`train_flows.data.load_density_data`.

    The rows are split 80/10/10 by the seed; an NPZ file of train, validation and test keeps its split. A large NPY
    file stays on disk, with at most 100,000 rows for validation and for testing.

    Raises:
        InputError: if the file is not a table of numbers, or has columns without a density.
    """
    mapped = None if jitter or context else tables.open_mapped(path)
    if mapped is not None:
        return _load_mapped(Path(path).name, mapped, seed, split)
    table = tables.read(path)
    columns = _others(table.parts, context, "context", path)
    parts = {}
    for part, frame in table.parts.items():
        x = _numbers(path, part, frame[[*columns]], split)
        c = _numbers(path, part, frame[[*context]], split) if context else None
        parts[part] = Split(torch.from_numpy(x), c=None if c is None else torch.from_numpy(c))
    dataset = _dataset(Path(path).name, _arranged(parts, seed, split), columns, tuple(context), seed, jitter)
    return dataclasses.replace(dataset, named=table.named, notes=table.notes + dataset.notes)


def load_benchmark(name: str, root: str | Path) -> Dataset:
    """Load one of the benchmark tables, prepared and split as published."""
    arrays = benchmark_tables.read(name, root)
    parts = tuple(Split(torch.from_numpy(arrays[part])) for part in tables.PARTS)
    dataset = _dataset(name, parts, tuple(f"x{i}" for i in range(parts[0].x.shape[1])))
    return dataclasses.replace(dataset, named=False)


def load_labelled(
    path: str | Path, target: str | None, task: str = "classes", seed: int = 0, split: bool = True
) -> Dataset:
    """Read a table with a column to predict; the arguments are those of :func:`train_flows.data.load_labelled_data`.

    Raises:
        InputError: if the column is missing or does not suit the task, or other columns are not numbers.
    """
    regression = task == "regression"
    table = tables.read(path, () if regression or target is None else (target,))
    frames = table.parts
    if target is None:
        raise InputError(f"--target is missing: choose one of {abbreviate([*next(iter(frames.values()))])}")
    columns, classes = _others(frames, [target], "target", path), ()
    if regression:
        values = {part: _numbers(path, part, frame[[target]], split) for part, frame in frames.items()}
        if split and all((y == y[0]).all() for y in values.values()):
            raise InputError(f"{path}: {target} is constant: choose another column to predict")
        y = {part: torch.from_numpy(numbers).float() for part, numbers in values.items()}
    else:
        texts = {part: _class_names(path, frame[target]) for part, frame in frames.items()}
        classes = _classes(path, target, [text for part in texts.values() for text in part], split)
        number = {name: i for i, name in enumerate(classes)}
        y = {part: torch.tensor([number[text] for text in labels]) for part, labels in texts.items()}
    arrays = {part: _numbers(path, part, frame[[*columns]], split) for part, frame in frames.items()}
    splits = {part: Split(torch.from_numpy(x).float(), y[part]) for part, x in arrays.items()}
    values = np.concatenate([*arrays.values()])
    _check_range(str(path), values, columns)
    parts, notes = _arranged(splits, seed, split), table.notes + _far_from_zero(values, columns)
    return Dataset(Path(path).name, *parts, columns, classes=classes, is_table=True, named=table.named, notes=notes)


def load_sklearn(name: str, seed: int = 0) -> Dataset:
    """Load ``wine`` or ``breast-cancer`` of scikit-learn, in classes."""
    from sklearn import datasets  # seconds, which tables from files need not wait for

    bunch = {"wine": datasets.load_wine, "breast-cancer": datasets.load_breast_cancer}[name]()
    samples = Split(torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target).long())
    columns, classes = (tuple(map(str, names)) for names in (bunch.feature_names, bunch.target_names))
    return Dataset(name, *three_splits(samples, seed), columns, classes=classes, is_table=True)


def _others(frames: Mapping[str, pd.DataFrame], chosen: Sequence[str], option: str, path: object) -> tuple[str, ...]:
    """Return the columns that an option does not choose."""
    names = [*next(iter(frames.values()))]
    for column in chosen:
        if column not in names:
            raise InputError(f"--{option} {column} is not a column of {path}: choose one of {abbreviate(names)}")
    return tuple(name for name in names if name not in chosen)


def _numbers(path: object, part: str, frame: pd.DataFrame, split: bool) -> np.ndarray:
    name = str(path) if part == "all" else f"{path}: {part}"
    return tables.numbers(name, frame, MIN_ROWS[part] if split else 1)


def _arranged(parts: Mapping[str, Split], seed: int, split: bool) -> tuple[Split, Split, Split]:
    """Return three splits: those of the file, or of all its rows."""
    if "all" in parts:
        return three_splits(parts["all"], seed, split)
    train, validation, test = (parts[part] for part in tables.PARTS)
    return (train, validation, test) if split else (train.take(slice(0)), validation.take(slice(0)), test)


def _dataset(
    name: str,
    parts: tuple[Split, ...],
    columns: tuple[str, ...],
    context: tuple[str, ...] = (),
    seed: int = 0,
    jitter: bool = False,
) -> Dataset:
    """Check the columns of splits in float64 and return the data set in single precision."""
    arrays, notes = [part.x.numpy() for part in parts], ()  # float64
    for part in parts:
        _check_range(name, part.x.numpy(), columns)
        if part.c is not None:
            _check_range(name, part.c.numpy(), context)
    if len(parts[0]):
        single = arrays[0].astype(np.float32)
        few, notes = _checked(name, single, columns, JITTERED if jitter else FEW_VALUES)
        if jitter:
            rng, gaps = np.random.default_rng(seed), [np.diff(np.unique(values)).min() for values in single.T[few]]
            for x in arrays:
                for i, gap in zip(np.flatnonzero(few), gaps, strict=True):
                    x[:, i] += gap * rng.uniform(-0.5, 0.5, size=len(x))
    train, validation, test = (Split(part.x.float(), c=part.c if part.c is None else part.c.float()) for part in parts)
    seen = {row.tobytes() for row in train.x.numpy()}
    count = sum(row.tobytes() in seen for row in test.x.numpy())
    notes += (f"{count} of {len(test)} test rows are training rows too",) if count else ()
    return Dataset(name, train, validation, test, columns, context=context, is_table=True, notes=notes)


def _load_mapped(name: str, array: np.ndarray, seed: int, split: bool) -> Dataset:
    columns = tuple(f"x{i}" for i in range(array.shape[1]))
    chunks = (np.array(array[start : start + CHUNK_ROWS]) for start in range(0, len(array), CHUNK_ROWS))
    extremes = np.concatenate([[chunk.min(axis=0), chunk.max(axis=0)] for chunk in chunks])
    bad = np.array(~np.isfinite(extremes).all(axis=0))
    if bad.any():
        raise InputError(f"{name}: {_flagged(columns, bad)} holds missing or infinite values: drop those rows")
    _check_range(name, extremes, columns)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        samples = Split(torch.from_numpy(array), rows=torch.arange(len(array)))
    train, validation, test = three_splits(samples, seed, split, MAX_HEAD)
    if not split:
        return Dataset(name, train, validation, test, columns, is_table=True, named=False)
    sample = train.head().x.numpy()
    notes = (
        f"{len(array):,} rows stay on disk: {len(test):,} each validate and test; "
        f"columns are checked in {len(sample):,} others, and rows that occur twice are not looked for",
        *_checked(name, sample, columns, FEW_VALUES)[1],
    )
    return Dataset(name, train, validation.head(), test.head(), columns, is_table=True, named=False, notes=notes)


def _class_names(path: str | Path, labels: pd.Series) -> list[str]:
    """Return the class of every row as it is written; numbers, if all are, without a needless point: 1.0 is 1."""
    decoded = (label.decode(errors="replace") if isinstance(label, bytes) else label for label in labels)
    texts = ["" if pd.isna(label) else str(label).strip() for label in decoded]
    numeric = all(finite_number(text) is not None for text in texts if text not in MISSING)
    for row, text in enumerate(texts, start=1):
        if not text or (numeric and text in MISSING):
            raise InputError(f"{path}: {labels.name} is empty in data row {row}: fill it in or drop the row")
    return [re.sub(r"(\d)\.0*$", r"\1", text) for text in texts] if numeric else texts


def _classes(path: str | Path, target: str, labels: Sequence[str], split: bool) -> tuple[str, ...]:
    """Return the names of the classes in order; raise an InputError unless there are a few of them."""
    classes = tuple(sorted(set(labels), key=class_order))
    if split and len(classes) < 2:
        raise InputError(f"{path}: {target} holds one class only ({classes[0]}): at least 2 are needed")
    if split and len(classes) > len(labels) / 5:
        numbers = all(finite_number(name) is not None for name in classes)
        remedy = (
            "pass --task regression to predict numbers, or another --target" if numbers else "choose another column"
        )
        raise InputError(
            f"{path}: {target} holds {len(classes)} distinct values in {len(labels)} rows, which are not classes: "
            f"{remedy}"
        )
    return classes


def _check_range(name: str, values: np.ndarray, columns: Sequence[str]) -> None:
    """Raise an InputError for columns beyond single precision."""
    large = np.abs(values).max(axis=0, initial=0) > np.finfo(np.float32).max
    if large.any():
        raise InputError(f"{name}: {_flagged(columns, large)} is too large for single precision: rescale such columns")


def _checked(
    name: str, train: np.ndarray, columns: Sequence[str], few_values: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return which columns, (D,), have few distinct values, and notes on columns whose likelihood may mislead.

    Raises:
        InputError: for columns with a single value.
    """
    counts = [np.unique(values, return_counts=True)[1] for values in train.T]
    if (constant := np.array([len(count) == 1 for count in counts])).any():
        raise InputError(
            f"{name}: {_flagged(columns, constant)} is constant in single precision and does not have a density: "
            "drop or rescale such columns"
        )
    few = np.array([len(count) < NEAR_DISCRETE * len(train) for count in counts])
    common = np.array([count.max() > max(2, NEAR_DISCRETE * len(train)) for count in counts])
    found = (
        (few, few_values),
        (_unexplained(train) < UNEXPLAINED, f"almost linear in other columns, {WITHOUT_LIMIT}"),
        (common & ~few, f"one value is far too common, {WITHOUT_LIMIT}; consider dropping the column"),
    )
    notes = tuple(f"{_flagged(columns, flags)}: {what}" for flags, what in found if flags.any())
    return few, notes + _far_from_zero(train, columns)


def _unexplained(train: np.ndarray) -> np.ndarray:
    """Return the share of the variance of each column, (D,), that no linear function of the others explains.

    It is 1 / (C^-1)_ii for correlations C, with eigenvalues from 1e-12, which is rounding.
    """
    if train.shape[1] == 1:
        return np.ones(1)
    eigenvalues, axes = np.linalg.eigh(np.corrcoef(train.astype(np.float64).T))
    return 1 / (axes**2 / np.maximum(eigenvalues, 1e-12)).sum(axis=1)


def _far_from_zero(train: np.ndarray, columns: Sequence[str]) -> tuple[str, ...]:
    """Return a note on columns whose differences are lost in single precision."""
    std = train.std(axis=0)
    flags = (np.abs(train.mean(axis=0)) > 1e4 * std) & (std > 0)
    what = "far from zero for its spread; subtract an offset to spare the digits of single precision"
    return (f"{_flagged(columns, flags)}: {what}",) if flags.any() else ()


def _flagged(columns: Sequence[str], flags: np.ndarray) -> str:
    return ", ".join(column for column, flag in zip(columns, flags, strict=True) if flag)
