"""Tables with a column of classes, or of numbers to predict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from anode import InputError
from train_flows.data import column_checks, tables, tabular
from train_flows.data.dataset import Dataset, Split, abbreviate, class_order, finite_number, three_splits

MISSING = ("", "nan", "NaN", "NA", "N/A", "null", "None")  # among class names that are numbers


def load_labelled(
    path: str | Path,
    target: str | None,
    task: str = "classes",
    seed: int = 0,
    split: bool = True,
    dtype: torch.dtype = torch.float32,
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
    columns, classes = tabular.others(frames, [target], "target", path), ()
    if regression:
        values = {part: tabular.numbers_of(path, part, frame[[target]], split) for part, frame in frames.items()}
        if split and all((y == y[0]).all() for y in values.values()):
            raise InputError(f"{path}: {target} is constant: choose another column to predict")
        y = {part: torch.from_numpy(numbers).to(dtype) for part, numbers in values.items()}
    else:
        texts = {part: _class_names(path, frame[target]) for part, frame in frames.items()}
        classes = _classes(path, target, [text for part in texts.values() for text in part], split)
        number = {name: i for i, name in enumerate(classes)}
        y = {part: torch.tensor([number[text] for text in labels]) for part, labels in texts.items()}
    arrays = {part: tabular.numbers_of(path, part, frame[[*columns]], split) for part, frame in frames.items()}
    splits = {part: Split(torch.from_numpy(x).to(dtype), y[part]) for part, x in arrays.items()}
    values = np.concatenate([*arrays.values()])
    column_checks.check_range(str(path), values, columns, dtype)
    notes = *column_checks.scale_notes(values, columns)[1], *column_checks.far_from_zero(values, columns, dtype)
    parts = tabular.arranged(splits, seed, split)
    about: dict[str, Any] = {"is_table": True, "named": table.named, "notes": table.notes + notes}
    return Dataset(Path(path).name, *parts, columns, classes=classes, **about)


def load_sklearn(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Dataset:
    """Load ``wine`` or ``breast-cancer`` of scikit-learn, in classes."""
    from sklearn import datasets  # seconds, which tables from files need not wait for

    bunch = {"wine": datasets.load_wine, "breast-cancer": datasets.load_breast_cancer}[name]()
    samples = Split(torch.from_numpy(bunch.data).to(dtype), torch.from_numpy(bunch.target).long())
    columns, classes = (tuple(map(str, names)) for names in (bunch.feature_names, bunch.target_names))
    return Dataset(name, *three_splits(samples, seed), columns, classes=classes, is_table=True)


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
