"""Reading tables of numbers: CSV, NPY, NPZ and Parquet, with an explanation of whatever cannot be a density."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from anode import InputError

SUFFIXES = (".csv", ".csv.gz", ".npy", ".npz", ".parquet")
PICKLES = (".pkl", ".pickle", ".pkl.gz", ".pickle.gz")
LEAST_ROWS = 20


class Table(NamedTuple):
    """A table of numbers.

    Attributes:
        values: (N, D), float64.
        columns: D names.
    """

    values: np.ndarray
    columns: tuple[str, ...]


def read(path: str | Path, least_rows: int = LEAST_ROWS) -> Table:
    """Read a table of at least two columns of finite numbers.

    Args:
        path: a file ending in ``.csv``, ``.csv.gz`` (comma, semicolon, tab or blanks between the fields, with a
            header line or without), ``.npy``, ``.npz`` (of one array) or ``.parquet``.
        least_rows: fewer rows are refused; by default as many as a split into three parts needs.

    Raises:
        InputError: when the file is missing, empty, of another format, or holds anything but finite numbers.
    """
    path = Path(path)
    frame = _frame(path)
    if len(frame) == 0 or frame.shape[1] == 0:
        raise InputError(f"{path} is empty: pass a table of at least {LEAST_ROWS} rows")
    for column in frame:
        frame[column] = _numbers(path, frame[column])
    if frame.shape[1] < 2:
        raise InputError(f"{path} has one column ({frame.columns[0]}): a table needs at least 2")
    if len(frame) < least_rows:
        raise InputError(f"{path} has {len(frame)} rows: at least {least_rows} are needed")
    return Table(frame.to_numpy(np.float64), tuple(str(column) for column in frame))


def read_splits(path: str | Path) -> dict[str, Table] | None:
    """The tables ``train``, ``validation`` and ``test`` of an NPZ file that holds those three, else None."""
    path = Path(path)
    if path.suffix.lower() != ".npz":
        return None
    _check_file(path)
    with _npz(path) as arrays:
        if set(arrays.files) != {"train", "validation", "test"}:
            return None
        frames = {name: _checked_frame(path, arrays[name]) for name in arrays.files}
    if len({frame.shape[1] for frame in frames.values()}) > 1:
        raise InputError(
            f"{path}: train, validation and test differ in their number of columns; write them again alike"
        )
    return {
        name: Table(frame.apply(lambda column: _numbers(path, column)).to_numpy(np.float64), tuple(frame))
        for name, frame in frames.items()
    }


def _frame(path: Path) -> pd.DataFrame:
    _check_file(path)
    name = path.name.lower()
    if name.endswith((".csv", ".csv.gz")):
        return _read_csv(path)
    if name.endswith(".parquet"):
        return _read_parquet(path)
    return _checked_frame(path, _read_numpy(path))


def _check_file(path: Path) -> None:
    name = path.name.lower()
    if not path.exists():
        raise InputError(f"{path} does not exist: check the path")
    if name.endswith(PICKLES):
        raise InputError(
            f"{path} is a pickle, which can run code when read; if you trust it, convert it: "
            f"python -c \"import pandas; pandas.DataFrame(pandas.read_pickle('{path}')).to_csv('{path.stem}.csv')\""
        )
    if not name.endswith(SUFFIXES) or path.is_dir():
        raise InputError(f"{path} is not a table: pass a file ending in {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: pass a table of at least {LEAST_ROWS} rows")


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        with gzip.open(path, "rt") if path.suffix.lower() == ".gz" else path.open() as file:
            head = file.readline().strip()
        delimiter = next((mark for mark in ",;\t" if mark in head), " ")
        first = next(csv.reader([head], delimiter=delimiter, skipinitialspace=True), [])
        named = bool(first) and not any(_is_number(field) for field in first)
        frame = pd.read_csv(path, sep=r"\s+" if delimiter == " " else delimiter, header=0 if named else None)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as CSV ({str(error).strip()}): check the file") from error
    if not named:
        frame.columns = [f"x{i}" for i in range(frame.shape[1])]
    return frame


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow: python -m pip install 'augmented-flows[parquet]'") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as Parquet ({str(error).strip()}): check the file") from error


def _read_numpy(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".npz":
        with _npz(path) as arrays:
            if len(arrays.files) != 1:
                raise InputError(
                    f"{path} holds the arrays {', '.join(arrays.files)}: keep one, or train, validation and test"
                )
            return _array(path, arrays, arrays.files[0])
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(_no_numbers(path, error)) from error


def _npz(path: Path) -> np.lib.npyio.NpzFile:
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:  # zipfile and numpy raise many kinds
        raise InputError(_no_numbers(path, error)) from error


def _array(path: Path, arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        return arrays[name]
    except (OSError, ValueError, EOFError) as error:
        raise InputError(_no_numbers(path, error)) from error


def _no_numbers(path: Path, error: Exception) -> str:
    return (
        f"{path} is damaged or holds pickled objects ({str(error).strip()}); if you trust it, convert it: "
        f"python -c \"import numpy; numpy.save('numbers.npy', numpy.load('{path}', allow_pickle=True).astype(float))\""
    )


def _checked_frame(path: Path, array: np.ndarray) -> pd.DataFrame:
    if array.ndim != 2:
        raise InputError(f"{path} holds an array of shape {array.shape}: a table is (rows, columns)")
    return pd.DataFrame(array, columns=[f"x{i}" for i in range(array.shape[1])])


def _numbers(path: Path, column: pd.Series) -> pd.Series:
    """The column as float64, or the reason why not."""
    if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_string_dtype(column)):
        raise InputError(
            f"{path}: column {column.name} is of type {column.dtype}: convert it to real numbers or drop it"
        )
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    missing = column.isna().to_numpy()
    text = numbers.isna().to_numpy() & ~missing
    infinite = np.isinf(numbers.to_numpy())
    for bad, what, remedy in (
        (text, "text", "encode it as numbers or drop the column"),
        (missing, "missing values", "fill them in or drop those rows"),
        (infinite, "infinite values", "drop those rows"),
    ):
        if bad.any():
            row = int(bad.argmax())
            raise InputError(
                f"{path}: column {column.name} holds {what} in {int(bad.sum())} of {len(column)} rows "
                f"(first in data row {row + 1}: {column.iloc[row]!r}): {remedy}"
            )
    return numbers
