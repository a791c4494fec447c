"""Reading tables: CSV, NPY, NPZ and Parquet, with an explanation of whatever cannot be used."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from anode import InputError
from train_flows.data import csv_tables
from train_flows.data.dataset import abbreviate

ALONE = (*csv_tables.SUFFIXES, ".npy", ".npz")  # a file is a table
SUFFIXES = (*ALONE, ".parquet")
PARTS = ("train", "validation", "test")
MIN_ROWS = 20  # for a split into three parts
MAPPED_BYTES = 2**30  # NPY files of this size and above stay on disk
MAGIC, PICKLE = (b"\x93NUMPY", b"PK"), b"\x80"  # first bytes of files


@dataclass(frozen=True, eq=False)
class Table:
    """A table as it was read.

    Attributes:
        parts: the tables ``train``, ``validation`` and ``test``, or one table named ``all``.
        named: True if the file names its columns.
        notes: sentences about how it was read.
        weights: positive weights of the rows of each part; empty if all are equal.
    """

    parts: dict[str, pd.DataFrame]
    named: bool
    notes: tuple[str, ...] = ()
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)

    def weights_of(self, part: str, rows: np.ndarray | slice = slice(None)) -> torch.Tensor | None:
        """Return the weights (N,) of some rows of a part; None if all are equal."""
        return torch.from_numpy(self.weights[part][rows]) if self.weights else None


def read(path: str | Path, text_columns: Collection[str] = ()) -> Table:
    """Read a table, or the tables ``train``, ``validation`` and ``test`` of an NPZ file with these three arrays.

    Args:
        path: a file ending in ``.csv`` or ``.csv.gz`` (comma, semicolon, tab, bar or blanks between the fields, with
            a header line or without), ``.npy``, ``.npz`` or ``.parquet``, or a folder of Parquet files.
        text_columns: columns of a CSV file to keep as text, in bytes.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: check the path")
    table = _read_folder(path) if is_folder(path) else _read_file(path, text_columns)
    for frame in table.parts.values():
        if frame.columns.has_duplicates:
            repeated = frame.columns[frame.columns.duplicated()][0]
            raise InputError(f"{path} has more than one column {repeated}: rename them")
    return table


def with_weights(name: str, table: Table, column: str | None, needed: bool = True) -> Table:
    """Return a table with the weights of a column, if any is named; it may lack the column unless it is needed."""
    names = [*next(iter(table.parts.values()))]
    if column is None or (column not in names and not needed):
        return table
    if column not in names:
        raise InputError(f"--weights {column} is not a column of {name}: choose one of {abbreviate(names)}")
    rest = {part: frame.drop(columns=column) for part, frame in table.parts.items()}
    return weigh(name, replace(table, parts=rest), {part: frame[column] for part, frame in table.parts.items()})


def weigh(name: str, table: Table, weights: Mapping[str, pd.Series]) -> Table:
    """Return a table with weights of its rows; those of weight 0 are left out.

    Args:
        name: of the table, for errors.
        table: the table.
        weights: the weights of each part, of which the name is the column's.

    Raises:
        InputError: for a weight that is missing, not a number, not finite or negative, and if all are 0.
    """
    parts, kept, notes = {}, {}, table.notes
    for part, series in weights.items():
        values = pd.to_numeric(series, errors="coerce").to_numpy(np.float64, na_value=np.nan)
        bad = ~(np.isfinite(values) & (values >= 0))
        if bad.any():
            first = int(bad.argmax())
            raise InputError(
                f"{name}: column {series.name} holds {series.iloc[first]} in data row {first + 1}, weights are numbers "
                "from 0 on: correct it or drop the row"
            )
        if not values.any():
            raise InputError(f"{name}: the weights in column {series.name} are all zero: pass other ones")
        rows = values > 0
        parts[part], kept[part] = table.parts[part][rows], values[rows]
        notes += (f"{(~rows).sum():,} of {len(rows):,} rows have weight 0 and are left out",) * (not rows.all())
    return replace(table, parts=parts, weights=kept, notes=notes)


def is_folder(path: Path) -> bool:
    """Return True for a folder of nothing but tables, such as the Parquet files that Spark writes."""
    names = [name for name in os.listdir(path) if not name.startswith((".", "_"))] if path.is_dir() else []
    if names and all("=" in name for name in names):  # partitions by the value of a column
        return next(path.glob("*=*/**/*.parquet"), None) is not None
    return bool(names) and all(name.lower().endswith(SUFFIXES) for name in names)


def _read_folder(path: Path) -> Table:
    others = [file.name for file in path.iterdir() if file.is_file() and file.name.lower().endswith(ALONE)]
    if others:
        raise InputError(f"{path} is a folder of tables ({abbreviate(sorted(others))}): pass one file")
    return _read_parquet(path)


def _read_file(path: Path, text_columns: Collection[str]) -> Table:
    if not path.name.lower().endswith(SUFFIXES) or not path.is_file():
        raise InputError(f"{path} is not a table: pass a file ending in {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: pass a table of at least {MIN_ROWS} rows")
    if path.name.lower().endswith(csv_tables.SUFFIXES):
        frame, named, notes = csv_tables.read(path, text_columns)
        return Table({"all": frame}, named, tuple(notes))
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    arrays = read_arrays(path)
    if set(arrays) == set(PARTS):
        frames = {part: _frame(f"{path}: {part}", arrays[part]) for part in PARTS}
        if len({tuple(frame.columns) for frame in frames.values()}) > 1:
            raise InputError(f"{path}: train, validation and test differ in their columns: write them alike")
        return Table(frames, named=arrays["train"].dtype.names is not None)
    if len(arrays) != 1:
        raise InputError(
            f"{path} holds the arrays {abbreviate([*arrays])}: pass one array, or three named {', '.join(PARTS)}"
        )
    (array,) = arrays.values()
    return Table({"all": _frame(str(path), array)}, named=array.dtype.names is not None)


def numbers(name: str, frame: pd.DataFrame, min_rows: int = MIN_ROWS) -> np.ndarray:
    """Return the finite numbers of a table, (N, D), float64; ``name`` names it in the error if it holds others."""
    if len(frame) == 0 or frame.shape[1] == 0:
        raise InputError(f"{name} is empty: pass a table of at least {min_rows} rows")
    columns, faults = [], {}
    for column in frame:
        try:
            columns.append(_column_numbers(name, frame[column]))
        except InputError as error:
            faults[str(column)] = str(error)
    if faults:
        first, *others = faults
        more = f"; these cannot be used as they are either: {abbreviate(others)}" if others else ""
        raise InputError(faults[first] + more)
    if len(frame) < min_rows:
        raise InputError(f"{name} has {len(frame)} rows: at least {min_rows} are needed")
    return np.stack(columns, axis=1)


def open_mapped(path: str | Path) -> np.ndarray | None:
    """Map a large NPY table (N, D) of real numbers into memory; None for any other file, to be read as a whole."""
    path = Path(path)
    if path.suffix.lower() != ".npy" or not path.is_file() or path.stat().st_size < MAPPED_BYTES:
        return None
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # explained by `read`
        return None
    usable = array.ndim == 2 and array.shape[1] > 0 and array.dtype in (np.float32, np.float64, np.int32, np.int64)
    return array if usable else None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an NPZ file, or the one of an NPY file; pickled objects are refused."""
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {path.stem: content}
        with content:
            return {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        with path.open("rb") as file:
            start = file.read(6)
        if start.startswith(PICKLE) or str(error).startswith("Object arrays"):
            raise InputError(
                f"{path} holds pickled Python objects, which can run code: save an array of numbers in it"
            ) from error
        why = f"is damaged ({error})" if start.startswith(MAGIC) else "was not saved by NumPy"
        raise InputError(f"{path} {why}: write it again by numpy.save or numpy.savez") from error


def _read_parquet(path: Path) -> Table:
    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow: python -m pip install pyarrow") from error
    except Exception as error:  # pyarrow and pandas raise many kinds
        raise InputError(f"{path} cannot be read as Parquet ({str(error).strip()}): check the file") from error
    index = [str(name) for name in frame.index.names if name is not None]
    notes = (f"the index {abbreviate(index)} is left out; pandas' reset_index() makes it a column",) if index else ()
    return Table({"all": frame.set_axis([str(column) for column in frame], axis=1)}, named=True, notes=notes)


def _frame(name: str, array: np.ndarray) -> pd.DataFrame:
    """Return an array (rows, columns), or records with named fields, as a table."""
    if array.dtype.names and array.shape in ((array.size,), (array.size, 1)):
        if nested := [field for field in array.dtype.names if array.dtype[field].kind == "V"]:
            raise InputError(f"{name}: field {nested[0]} is of type {array.dtype[nested[0]]}: save one field a number")
        return pd.DataFrame({field: array[field].reshape(-1) for field in array.dtype.names})
    if array.ndim != 2 or array.dtype.names:
        raise InputError(f"{name} holds an array of shape {array.shape}: a table is (rows, columns)")
    return pd.DataFrame(array, columns=[f"x{i}" for i in range(array.shape[1])])


def _column_numbers(name: str, column: pd.Series) -> np.ndarray:
    """Return a column as float64, or raise the reason why it cannot be used."""
    kinds = pd.api.types
    real = kinds.is_numeric_dtype(column) and not kinds.is_complex_dtype(column)
    if not (real or kinds.is_string_dtype(column)):
        raise InputError(
            f"{name}: column {column.name} is of type {column.dtype}: convert it to real numbers or leave it out"
        )
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if np.isfinite(values).all():
        return values
    missing = column.isna().to_numpy()
    for what, bad, remedy in (
        ("text", np.isnan(values) & ~missing, "encode it as numbers or drop the column"),
        ("missing values", missing, "fill them in or drop those rows"),
        ("infinite values", np.isinf(values), "drop those rows"),
    ):
        if bad.any():
            first = int(bad.argmax())
            field = f": {column.iloc[first]!r}" if what == "text" else ""
            if re.search(r"\d,\d", field):
                remedy = "write decimals with points, and thousands without a mark"
            raise InputError(
                f"{name}: column {column.name} holds {what} in {bad.sum()} of {len(column)} rows "
                f"(first in data row {first + 1}{field}): {remedy}"
            )
    return values
