"""Reading tables: CSV, NPY, NPZ and Parquet, with an explanation of whatever cannot be used."""

from __future__ import annotations

import csv
import gzip
import warnings
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from anode import InputError
from train_flows.data.dataset import finite_number

SUFFIXES = (".csv", ".csv.gz", ".npy", ".npz", ".parquet")
PARTS = ("train", "validation", "test")
MIN_ROWS = 20  # for a split into three parts
MAX_LINE = 2**20  # bytes of a line of CSV that are looked at for names and delimiter
MAPPED_BYTES = 2**30  # NPY files of this size and above stay on disk


def read(path: str | Path, text_columns: Collection[str] = ()) -> dict[str, pd.DataFrame]:
    """Read a table, or the tables ``train``, ``validation`` and ``test`` of an NPZ file with these three arrays.

    Args:
        path: a file ending in ``.csv`` or ``.csv.gz`` (comma, semicolon, tab or blanks between the fields, with a
            header line or without), ``.npy``, ``.npz`` or ``.parquet``.
        text_columns: columns of a CSV file to keep as text, in bytes.

    Returns:
        The three tables by name, or one table named ``all``.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: check the path")
    if not path.name.lower().endswith(SUFFIXES) or not path.is_file():
        raise InputError(f"{path} is not a table: pass a file ending in {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: pass a table of at least {MIN_ROWS} rows")
    if path.name.lower().endswith((".csv", ".csv.gz")):
        return {"all": _read_csv(path, text_columns)}
    if path.suffix.lower() == ".parquet":
        return {"all": _read_parquet(path)}
    arrays = read_arrays(path)
    if set(arrays) == set(PARTS):
        frames = {part: _frame(f"{path}: {part}", arrays[part]) for part in PARTS}
        if len({frame.shape[1] for frame in frames.values()}) > 1:
            raise InputError(f"{path}: train, validation and test differ in their number of columns: write them alike")
        return frames
    if len(arrays) != 1:
        raise InputError(
            f"{path} holds the arrays {', '.join(arrays)}: pass one array, or three named {', '.join(PARTS)}"
        )
    return {"all": _frame(str(path), next(iter(arrays.values())))}


def numbers(name: str, frame: pd.DataFrame, min_rows: int = MIN_ROWS, min_columns: int = 2) -> np.ndarray:
    """Return the finite numbers of a table, (N, D), float64; ``name`` names it in the error if it holds others."""
    if len(frame) == 0 or frame.shape[1] == 0:
        raise InputError(f"{name} is empty: pass a table of at least {min_rows} rows")
    _check_names(name, frame.columns)
    columns = [_column_numbers(name, frame[column]) for column in frame]
    if frame.shape[1] < min_columns:
        raise InputError(f"{name} has one column ({frame.columns[0]}): a table needs at least {min_columns}")
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
    usable = array.ndim == 2 and array.shape[1] > 1 and array.dtype in (np.float32, np.float64, np.int32, np.int64)
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
        raise InputError(f"{path} is damaged or holds pickled objects ({error}): save numbers in it") from error


def _read_csv(path: Path, text_columns: Collection[str]) -> pd.DataFrame:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with warnings.catch_warnings(), opener(path, "rb") as file:
            warnings.simplefilter("error", pd.errors.ParserWarning)  # for rows longer than the header
            delimiter, first, second = _head(file)
            names = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(first)]
            has_header = _is_header(first, second)
            names = names if has_header else [f"x{i}" for i in range(len(first))]
            frame = pd.read_csv(
                file,
                sep=r"\s+" if delimiter == " " else delimiter,
                header=0 if has_header else None,
                index_col=False,
                skipinitialspace=True,
                # bytes, which pandas never takes for a missing value, not even b"NA"
                converters={i: lambda t: t.strip().encode() for i, name in enumerate(names) if name in text_columns},
            ).set_axis(names, axis=1)
    except (OSError, ValueError, EOFError, csv.Error, zlib.error, pd.errors.ParserWarning) as error:
        raise InputError(f"{path} cannot be read as CSV ({str(error).strip()}): check the file") from error
    _check_names(str(path), frame.columns)
    if names[0] == "Unnamed: 0" and np.array_equal(frame.iloc[:, 0], np.arange(len(frame))):
        raise InputError(
            f"{path}: the first column, without a name, counts the rows: write the table without its index"
        )
    return frame


def _check_names(name: str, columns: pd.Index) -> None:
    if columns.has_duplicates:
        raise InputError(f"{name} has more than one column {columns[columns.duplicated()][0]}: rename them")


def _head(file: IO[bytes] | gzip.GzipFile) -> tuple[str, list[str], list[str]]:
    """Return the delimiter, which cuts the first two lines into most fields alike, and those lines in fields."""
    lines: list[str] = []
    while len(lines) < 2 and (line := file.readline(MAX_LINE)):
        text = line.decode("utf-8-sig", errors="replace").rstrip("\r\n")
        lines += [text] if text.strip() else []
    file.seek(0)
    lines += [""] * (2 - len(lines))
    options = []
    for delimiter in ",;\t ":
        stripped = [line.strip(" " if delimiter != " " else None) for line in lines]
        first, second = csv.reader(stripped, delimiter=delimiter, skipinitialspace=True)
        options.append((delimiter, first, second))
    return max(options, key=lambda option: (len(option[1]) == len(option[2]) > 1, len(option[1])))


def _is_header(first: list[str], second: list[str]) -> bool:
    """Return True for names: without numbers, with a gap over an index, or whole numbers over a line without any."""
    if all(finite_number(field) is None for field in first) or not first[0]:
        return True
    return all(field.isdecimal() for field in first) and not any(field.lstrip("+-").isdecimal() for field in second)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow: python -m pip install pyarrow") from error
    except Exception as error:  # pyarrow and pandas raise many kinds
        raise InputError(f"{path} cannot be read as Parquet ({str(error).strip()}): check the file") from error
    return frame.set_axis([str(column) for column in frame], axis=1)


def _frame(name: str, array: np.ndarray) -> pd.DataFrame:
    if array.ndim != 2:
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
            raise InputError(
                f"{name}: column {column.name} holds {what} in {bad.sum()} of {len(column)} rows "
                f"(first in data row {first + 1}: {column.iloc[first]!r}): {remedy}"
            )
    return values
