"""Data sets to classify: the paper's functions, scikit-learn's, and tables with a column of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn import datasets

from anode import InputError
from train_flows.data import paper, tables
from train_flows.data.labelled import Labelled, Pairs, split

SKLEARN = {"digits": datasets.load_digits, "wine": datasets.load_wine, "breast-cancer": datasets.load_breast_cancer}
TRAIN, HELD_OUT = 3000, 1000  # points of the paper's functions
STREAMS = 1_000_003  # between the seeds of the three parts


def load(source: str, seed: int = 0, target: str | None = None) -> Labelled:
    """Load a data set.

    Args:
        source: a function of :mod:`train_flows.data.paper`, ``digits``, ``wine``, ``breast-cancer``, or the path of a
            table.
        seed: of the points drawn, or of the split.
        target: the column of the classes, for a table.

    Raises:
        InputError: when there is no such data set, or it has no such classes.
    """
    if known(source) and target is not None:
        raise InputError(f"--target {target} is for tables from files, not for {source}: drop it")
    if paper.known(source):
        return _function(source, seed)
    if source in SKLEARN:
        return _sklearn(source, seed)
    if not Path(source).exists() and not Path(source).suffix:
        names = ", ".join([*paper.FUNCTIONS, "spheres-3", *SKLEARN])
        raise InputError(f"data={source!r} is neither a known data set ({names}) nor an existing file")
    if target is None:
        raise InputError(f"which column of {source} holds the classes is not known: pass --target COLUMN")
    pairs, columns, classes = read(source, target)
    train, validation, test = split(pairs, seed)
    return Labelled(Path(source).name, train, validation, test, columns, classes, _notes(train, classes))


def known(source: str) -> bool:
    """Whether a data set is one by name, not a file."""
    return paper.known(source) or source in SKLEARN


def read(
    path: str, target: str, classes: tuple[str, ...] | None = None
) -> tuple[Pairs, tuple[str, ...], tuple[str, ...]]:
    """Inputs and classes of a table, the names of its other columns, and those of the classes.

    Args:
        path: see :func:`train_flows.data.tables.read`.
        target: the column of the classes: text or whole numbers.
        classes: their names in order, where they are known; by default those found, sorted.

    Raises:
        InputError: when there is no such column, it holds no classes, or other columns are no numbers.
    """
    frame = tables.read_frame(path)
    frame.columns = [str(column) for column in frame]
    if target not in frame:
        shown = ", ".join([*frame.columns[:8], *["..."] * (frame.shape[1] > 8)])
        raise InputError(f"--target {target} is no column of {path}: choose one of {shown}")
    found = _names(path, frame.pop(target))
    names = classes or tuple(sorted(set(found), key=_in_order))
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise InputError(f"{path}: {target} holds {unknown[0]!r}, which is none of {', '.join(names)}")
    if not classes:
        _check_classes(path, target, names, len(found))
    table = tables.numbers(str(path), frame, least_rows=1 if classes else tables.LEAST_ROWS, least_columns=1)
    y = torch.tensor([names.index(name) for name in found])
    return Pairs(torch.from_numpy(table.values.astype(np.float32)), y), table.columns, names


def _names(path: str, labels: pd.Series) -> list[str]:
    """The class of every row as text; whole numbers without a decimal point."""
    if labels.isna().any():
        row = int(labels.isna().to_numpy().argmax()) + 1
        raise InputError(f"{path}: {labels.name} holds missing values (first in data row {row}): drop those rows")
    if pd.api.types.is_float_dtype(labels) and (labels == labels.round()).all():
        labels = labels.astype(int)
    return [str(label).strip() for label in labels]


def _in_order(name: str) -> tuple[float, str]:
    """Numbers by value, before words by alphabet."""
    try:
        return float(name), name
    except ValueError:
        return float("inf"), name


def _check_classes(path: str, target: str, classes: tuple[str, ...], rows: int) -> None:
    if len(classes) < 2:
        raise InputError(f"{path}: {target} holds one class only ({classes[0]}): at least 2 are needed")
    if len(classes) > rows / 5:
        raise InputError(f"{path}: {target} holds {len(classes)} distinct values in {rows} rows, which are no classes")


def _notes(train: Pairs, classes: tuple[str, ...]) -> tuple[str, ...]:
    counts = torch.bincount(train.y, minlength=len(classes))
    missing = [name for name, count in zip(classes, counts.tolist(), strict=True) if count == 0]
    return (f"no training sample of class {', '.join(missing)}",) if missing else ()


def _function(name: str, seed: int) -> Labelled:
    counts = (TRAIN, HELD_OUT, HELD_OUT)
    train, validation, test = (paper.sample(name, n, seed + i * STREAMS) for i, n in enumerate(counts))
    return Labelled(name, train, validation, test, tuple(f"x{i}" for i in range(train.x.shape[1])))


def _sklearn(name: str, seed: int) -> Labelled:
    bunch = SKLEARN[name]()
    pairs = Pairs(torch.from_numpy(bunch.data.astype(np.float32)), torch.from_numpy(bunch.target).long())
    columns = tuple(str(column) for column in bunch.feature_names)
    return Labelled(name, *split(pairs, seed), columns, tuple(str(label) for label in bunch.target_names))
