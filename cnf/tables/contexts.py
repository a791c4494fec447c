"""Rows of given columns from values by name, such as the name of a category."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anode.errors import InputError
from cnf.tables.columns import Column

SHOWN = 8  # categories in a message


def context_row(columns: Sequence[Column], given: Mapping[str, Any]) -> Tensor:
    """Return the cells (K,) of one row of given columns, float64.

    Args:
        columns: the columns, in order.
        given: a value for each of them by its name: a number, also as text, or the name of a category; None, NaN and
            empty text for a missing cell.

    Raises:
        InputError: for a column that is unknown or lacks a value, and for a value that the column cannot hold.

    Example:
        >>> columns = [Column("size"), Column("colour", "category", ("blue", "red"))]
        >>> context_row(columns, {"colour": "red", "size": 2})
        tensor([2., 1.], dtype=torch.float64)
    """
    names = ", ".join(column.name for column in columns)
    if unknown := [name for name in given if name not in {column.name for column in columns}]:
        raise InputError(f"given {unknown[0]}: the density is given {names or 'nothing'}; omit other columns")
    if lacking := [column.name for column in columns if column.name not in given]:
        raise InputError(f"given lacks {', '.join(lacking)}: pass a value for each of {names}")
    return torch.tensor([_cell(column, given[column.name]) for column in columns], dtype=torch.float64)


def _cell(column: Column, value: Any) -> float:
    """Return a value as a cell of a column."""
    if str(value) in column.categories:
        return float(column.categories.index(str(value)))
    try:
        number = math.nan if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        number = None
    if number is not None and math.isnan(number):
        if column.gaps:
            return number
        raise InputError(f"given {column.name}: {value!r} is a missing cell, but the data miss none; pass a value")
    if column.is_category:
        spelled = str(int(number)) if number is not None and number % 1 == 0 else str(number)  # 1.0 is 1
        if spelled in column.categories:
            return float(column.categories.index(spelled))
        known = ", ".join([*column.categories[:SHOWN], *["..."] * (len(column.categories) > SHOWN)])
        raise InputError(f"given {column.name}: {value!r} is not a category; pass one of {known}")
    low, high = column.bounds
    if number is None or not (low < number < high or number in column.atoms):
        between = f" between {low:g} and {high:g}" * (low > -math.inf or high < math.inf)
        raise InputError(f"given {column.name}: {value!r} is not a number{between}; pass one")
    return number
