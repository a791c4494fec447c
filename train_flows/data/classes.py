"""Data sets to classify: the paper's functions, images, scikit-learn's, and tables with a column of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn import datasets

from anode import InputError
from train_flows.data import images, paper, tables, tabular
from train_flows.data.labelled import Labelled, Pairs, in_order, missing_classes, number, split

SKLEARN = {"wine": datasets.load_wine, "breast-cancer": datasets.load_breast_cancer}
TRAIN, HELD_OUT = 3000, 1000  # points of the paper's functions
STREAMS = 1_000_003  # between the seeds of weights and of the three parts, lest they repeat each other's stream
MISSING = ("", "nan", "NaN", "NA", "N/A", "null", "None")  # among numbers


def load(source: str, seed: int = 0, target: str | None = None, **pictured: Any) -> Labelled:
    """Load a data set.

    Args:
        source: a function of :mod:`train_flows.data.paper`, a set of :mod:`train_flows.data.images` or a folder of
            images, ``wine``, ``breast-cancer``, or the path of a table.
        seed: of the points drawn, or of the split.
        target: the column of the classes, for a table.
        pictured: how to read images; see :func:`train_flows.data.images.labelled`.

    Raises:
        InputError: when there is no such data set, or it has no such classes.
    """
    of_images = images.known(source) or (not known(source) and Path(source).is_dir())
    if target is not None and (known(source) or of_images):
        raise InputError(f"--target {target} is for tables from files, not for {source}: drop it")
    if of_images:
        return images.labelled(source, seed, **pictured)
    for name in ("image_size", "train_size", "test_size"):
        if pictured.get(name) is not None:
            raise InputError(f"--{name.replace('_', '-')} {pictured[name]} is for images, not for {source}: drop it")
    if paper.known(source):
        return _function(source, seed)
    if source in SKLEARN:
        return _sklearn(source, seed)
    if not Path(source).exists() and not Path(source).suffix:
        names = ", ".join([*paper.FUNCTIONS, "spheres-3", *images.NAMES, *SKLEARN])
        raise InputError(
            f"data={source!r} is neither a known data set ({names}) nor an existing file: pass one of these, or the "
            "path of a table or of a folder of images"
        )
    if target is None:
        tables.read_frame(source)  # a missing or damaged file is the nearer cause
        raise InputError(f"which column of {source} holds the classes is not known: pass --target COLUMN")
    (x, y), columns, classes = read(source, target)
    train, validation, test = split(Pairs(x.float(), y), seed)
    notes = missing_classes(train, classes) + tabular.far_from_zero(x.numpy(), columns)
    return Labelled(Path(source).name, train, validation, test, columns, classes, notes)


def known(source: str) -> bool:
    """Whether a data set is one by name, not a file."""
    return paper.known(source) or images.known(source) or source in SKLEARN


def read(
    path: str, target: str, classes: tuple[str, ...] | None = None
) -> tuple[Pairs, tuple[str, ...], tuple[str, ...]]:
    """Inputs, in float64, and classes of a table, the names of its other columns, and those of the classes.

    Args:
        path: see :func:`train_flows.data.tables.read`.
        target: the column of the classes: text or whole numbers.
        classes: their names in order, where they are known; by default those found, sorted.

    Raises:
        InputError: when there is no such column, it holds no classes, or other columns are no numbers.
    """
    frame = tables.read_frame(path, text=target)
    frame.columns = [str(column) for column in frame]
    if target not in frame:
        shown = ", ".join([*frame.columns[:8], *["..."] * (frame.shape[1] > 8)])
        raise InputError(f"--target {target} is no column of {path}: choose one of {shown}")
    if len(frame) == 0 or frame.shape[1] < 2:
        raise InputError(
            f"{path} has {len(frame)} rows of {target} and {frame.shape[1] - 1} other columns: it needs both"
        )
    found = _names(path, frame.pop(target), classes)
    names = classes or tuple(sorted(set(found), key=in_order))
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise InputError(f"{path}: {target} holds {unknown[0]!r}, which is none of {', '.join(names)}")
    if not classes:
        _check_classes(path, target, names, len(found))
    table = tables.numbers(str(path), frame, least_rows=1 if classes else tables.LEAST_ROWS, least_columns=1)
    tabular.check_size(str(path), table.values, table.columns)
    y = torch.tensor([names.index(name) for name in found])
    return Pairs(torch.from_numpy(table.values), y), table.columns, names


def _names(path: str, labels: pd.Series, classes: tuple[str, ...] | None) -> list[str]:
    """The class of every row: words as they are written; numbers, where all are, without a needless decimal point."""
    written = ["" if pd.isna(label) else _text(label) for label in labels]
    numeric = all(number(text) is not None for text in written if text not in MISSING)
    for row, text in enumerate(written, start=1):
        if text == "" or (numeric and text in MISSING):
            raise InputError(f"{path}: {labels.name} is missing in data row {row}: fill in or drop such rows")
    if classes is None:
        return [_short(text) if numeric else text for text in written]
    return [text if text in classes else _short(text) for text in written]


def _text(label: Any) -> str:
    return (label.decode(errors="replace") if isinstance(label, bytes) else str(label)).strip()


def _short(text: str) -> str:
    value = number(text)
    return str(int(value)) if value is not None and value == int(value) else text


def _check_classes(path: str, target: str, classes: tuple[str, ...], rows: int) -> None:
    if len(classes) < 2:
        raise InputError(f"{path}: {target} holds one class only ({classes[0]}): at least 2 are needed")
    if len(classes) > rows / 5:
        raise InputError(f"{path}: {target} holds {len(classes)} distinct values in {rows} rows, which are no classes")


def _function(name: str, seed: int) -> Labelled:
    counts = (TRAIN, HELD_OUT, HELD_OUT)
    train, validation, test = (paper.sample(name, n, seed + i * STREAMS) for i, n in enumerate(counts, start=1))
    columns = tuple(f"x{i}" for i in range(train.x.shape[1]))
    notes = ("the test part holds the same two points as the training part",) if name in ("g1d", "identity") else ()
    return Labelled(name, train, validation, test, columns, notes=notes)


def _sklearn(name: str, seed: int) -> Labelled:
    bunch = SKLEARN[name]()
    pairs = Pairs(torch.from_numpy(bunch.data.astype(np.float32)), torch.from_numpy(bunch.target).long())
    columns = tuple(str(column) for column in bunch.feature_names)
    return Labelled(name, *split(pairs, seed), columns, tuple(str(label) for label in bunch.target_names))
