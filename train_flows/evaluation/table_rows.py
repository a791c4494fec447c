"""Rows of tables as a stored density takes them: its columns, of one kind or of several, and the cells of a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from anode import InputError, storage
from cnf import Density
from cnf.tables import Column, TableDensity
from train_flows.data import frames, tables
from train_flows.data.dataset import abbreviate
from train_flows.data.scales import is_whole


@dataclass(frozen=True, eq=False)
class Rows:
    """A table as it was read, with the cells x (N, D) and c (N, K) of the columns of a model, NaN where missing."""

    frame: pd.DataFrame
    x: Tensor
    c: Tensor | None
    notes: tuple[str, ...] = ()


def as_table(run: Path, model: Density, data: Mapping[str, Any]) -> TableDensity:
    """Return a density of numbers as one of a table, with steps for columns on a grid; densities of tables stay.

    Args:
        run: folder of the model.
        model: the density.
        data: the description of its data, of :func:`train_flows.data.dataset.description_of`.

    Raises:
        InputError: for a density of images, or one that is given classes.
    """
    if isinstance(model, TableDensity):
        return model
    if len(model.event_shape) != 1 or data["classes"] or len(data["context"]) != (model.context or 0):
        raise InputError(f"{run} is not a density of a table with named columns: train one on a table")
    names = data["columns"] or [f"x{i}" for i in range(model.event_shape.numel())]
    grids = {name: {"step": grid["step"], "origin": grid["origin"]} for name, grid in data["grids"].items()}
    columns = [Column(name, **grids.get(name, {})) for name in names]
    return TableDensity(columns, [Column(name) for name in data["context"]], None, model)


def read_rows(path: Path, model: TableDensity) -> Rows:
    """Read a table with the columns of a model, among others; all of its cells may be missing.

    Raises:
        InputError: if a column is missing, or a cell is none that the model knows.
    """
    table = tables.read(path)
    if "all" not in table.parts:
        raise InputError(f"{path} holds several arrays: pass one table")
    frame, columns = table.parts["all"], (*model.columns, *model.given)
    if not table.named and frame.shape[1] == len(columns):
        frame = frame.set_axis([column.name for column in columns], axis=1)
    if not len(frame):
        raise InputError(f"{path} is empty: pass a table with rows")
    x, c = (
        torch.from_numpy(frames.to_rows(str(path), frame, [dataclasses.replace(column, gaps=True) for column in each]))
        for each in (model.columns, model.given)
    )
    return Rows(frame, x, c if model.given else None, table.notes)


def write_rows(out: Path, frame: pd.DataFrame) -> None:
    """Write a table to a CSV file; whole numbers stay without a point if cells are missing."""
    numbers = {str(name): cells for name, cells in frame.items() if cells.dtype.kind == "f" and cells.isna().any()}
    whole = {name: cells.astype("Int64") for name, cells in numbers.items() if is_whole(cells.dropna().to_numpy())}
    out.parent.mkdir(parents=True, exist_ok=True)
    with storage.written_atomically(out) as file:
        frame.assign(**whole).to_csv(file, index=False)


def check_added(path: object, frame: pd.DataFrame, names: Sequence[str]) -> None:
    """Raise an :class:`anode.InputError` if a table has columns of the names to be added."""
    if taken := [name for name in names if name in frame]:
        raise InputError(f"{path} has the columns {abbreviate(taken)} already: rename them")


def unknown(x: Tensor | None, columns: Sequence[Column]) -> Tensor:
    """Return True for rows (N, D) that miss cells of columns without gaps, (N,)."""
    without = [i for i, column in enumerate(columns) if not column.gaps]
    return torch.tensor(False) if x is None else x[:, without].isnan().any(1)
