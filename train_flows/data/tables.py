"""Reading tables of numbers: CSV, NPY, NPZ and Parquet, with an explanation of whatever cannot be a density."""

from __future__ import annotations

import csv
import io
import warnings
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from anode import InputError
from train_flows.data.sizes import check_arrays, check_parquet, opened

SUFFIXES = (".csv", ".csv.gz", ".npy", ".npz", ".parquet")
PICKLES = (".pkl", ".pickle", ".pkl.gz", ".pickle.gz")
LEAST_ROWS = 20
FAULTS = (
    ("text", "encode it as numbers or drop the column"),
    ("missing values", "fill them in or drop those rows"),
    ("infinite values", "drop those rows"),
)


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
    return numbers(str(path), read_frame(path), least_rows)


def read_frame(path: str | Path, text: str | None = None) -> pd.DataFrame:
    """Read a file as :func:`read` does, whatever its columns hold.

    Args:
        path: see :func:`read`.
        text: a column of a CSV file to leave as it is written, as bytes.

    Raises:
        InputError: when the file is missing, empty or of another format.
    """
    path = Path(path)
    _check_file(path)
    if path.name.lower().endswith((".csv", ".csv.gz")):
        return _read_csv(path, text)
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    return _frame(path, _read_numpy(path))


def read_splits(path: str | Path) -> dict[str, Table] | None:
    """The tables ``train``, ``validation`` and ``test`` of an NPZ file that holds those three, else None.

    Raises:
        InputError: as :func:`read`, for each of the three.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        return None
    _check_file(path)
    arrays = arrays_of(path)
    if set(arrays) != {"train", "validation", "test"}:
        return None
    least = {"train": LEAST_ROWS, "validation": 2, "test": 2}
    splits = {part: numbers(f"{path}: {part}", _frame(path, array), least[part]) for part, array in arrays.items()}
    if len({len(table.columns) for table in splits.values()}) > 1:
        raise InputError(
            f"{path}: train, validation and test differ in their number of columns; write them again alike"
        )
    return splits


def numbers(name: str, frame: pd.DataFrame, least_rows: int = LEAST_ROWS, least_columns: int = 2) -> Table:
    """The numbers of a frame.

    Raises:
        InputError: when it holds anything but finite numbers, or too few of them.
    """
    if len(frame) == 0 or frame.shape[1] == 0:
        raise InputError(f"{name} is empty: pass a table of at least {least_rows} rows")
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise InputError(f"{name} has more than one column {repeated[0]}: rename them")
    columns = [_numbers(name, frame[column]) for column in frame]
    if frame.shape[1] < least_columns:
        raise InputError(f"{name} has one column ({frame.columns[0]}): a table needs at least 2")
    if len(frame) < least_rows:
        raise InputError(f"{name} has {len(frame)} rows: at least {least_rows} are needed")
    return Table(np.stack(columns, axis=1), tuple(str(column) for column in frame))


def _check_file(path: Path) -> None:
    name = path.name.lower()
    if not path.exists():
        raise InputError(f"{path} does not exist: check the path")
    if name.endswith(PICKLES):
        raise InputError(
            f"{path} is a pickle, which can run code when read; if you trust it, convert it: "
            f"python -c \"import pandas as pd; pd.read_pickle('{path}').to_csv('{path.stem}.csv', index=False)\""
        )
    if not name.endswith(SUFFIXES) or path.is_dir():
        raise InputError(f"{path} is not a table: pass a file ending in {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: pass a table of at least {LEAST_ROWS} rows")


def _read_csv(path: Path, text: str | None) -> pd.DataFrame:
    try:
        delimiter, first, second = _head(path)
        named = _are_names(first, second)
        names = [name.strip() for name in first] if named else [f"x{i}" for i in range(len(first))]
        with warnings.catch_warnings(), opened(path) as source:
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
            frame = pd.read_csv(
                source,
                sep=r"\s+" if delimiter == " " else delimiter,
                header=0 if named else None,
                index_col=False,
                skipinitialspace=True,
                converters={names.index(text): _as_written} if text in names else None,
            )
    except (OSError, ValueError, EOFError, csv.Error, zlib.error, pd.errors.ParserWarning) as error:
        raise InputError(f"{path} cannot be read as CSV ({str(error).strip()}): check the file") from error
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise InputError(f"{path} has more than one column {repeated[0]}: rename them")
    frame.columns = [str(name).strip() for name in frame] if named else [f"x{i}" for i in range(frame.shape[1])]
    if frame.columns[0] == "Unnamed: 0" and np.array_equal(frame.iloc[:, 0], np.arange(len(frame))):
        raise InputError(f"{path}: the first column has no name and counts the rows: write the table without its index")
    return frame


def _as_written(field: str) -> bytes:
    """The field as bytes, of which pandas takes none, such as NA, for a missing value."""
    return field.strip().encode()


def _head(path: Path) -> tuple[str, list[str], list[str]]:
    """The delimiter, which gives the first two lines most fields alike, and those lines in fields."""
    with opened(path) as source, io.TextIOWrapper(source, encoding="utf-8-sig") as file:
        lines = list(islice((line.rstrip("\r\n") for line in file if line.strip()), 2))
    lines += [""] * (2 - len(lines))
    options = []
    for delimiter in ",;\t ":
        first, second = (_fields(line, delimiter) for line in lines)
        options.append((len(first) == len(second) > 1, len(first), delimiter, first, second))
    *_, delimiter, first, second = max(options, key=lambda option: option[:2])
    return delimiter, first, second


def _fields(line: str, delimiter: str) -> list[str]:
    line = line.strip(" " if delimiter != " " else None)
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])


def _are_names(first: list[str], second: list[str]) -> bool:
    """Whether the first line holds names: no numbers, a gap over an index, or whole numbers over a line without."""
    if not any(_is_number(field) for field in first) or not first[0]:
        return True
    return all(field.isdecimal() for field in first) and not any(field.lstrip("+-").isdecimal() for field in second)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path) -> pd.DataFrame:
    with parquet_errors(path):
        check_parquet(path)
        return pd.read_parquet(path)


@contextmanager
def parquet_errors(path: Path) -> Generator[None]:
    """Explain what pyarrow raises while it reads a file."""
    try:
        yield
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow: python -m pip install 'augmented-flows[parquet]'") from error
    except Exception as error:  # pyarrow and pandas raise many kinds
        raise InputError(f"{path} cannot be read as Parquet ({str(error).strip()}): check the file") from error


def _read_numpy(path: Path) -> np.ndarray:
    arrays = arrays_of(path)
    if len(arrays) != 1:
        raise InputError(
            f"{path} holds the arrays {', '.join(arrays)}: a table is one array (a density also takes three, "
            "train, validation and test)"
        )
    return next(iter(arrays.values()))


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file, or the one of an NPY file; pickled objects are refused.

    Raises:
        InputError: when the file is damaged or holds anything but arrays.
        FileNotFoundError: when there is none.
    """
    try:
        check_arrays(path)
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {path.stem: content}
        with content:
            return {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        raise InputError(_no_numbers(path, error)) from error


def _no_numbers(path: Path, error: Exception) -> str:
    return (
        f"{path} is damaged or holds pickled objects ({str(error).strip()}); if you trust it, convert it: "
        f"python -c \"import numpy; numpy.save('numbers.npy', numpy.load('{path}', allow_pickle=True).astype(float))\""
    )


def _frame(path: Path, array: np.ndarray) -> pd.DataFrame:
    if array.ndim != 2:
        raise InputError(f"{path} holds an array of shape {array.shape}: a table is (rows, columns)")
    return pd.DataFrame(array, columns=[f"x{i}" for i in range(array.shape[1])])


def _numbers(name: str, column: pd.Series) -> np.ndarray:
    """The column as float64, or the reason why not."""
    numbers, faults = parse(name, column)
    for kind, bad in enumerate(faults):
        if bad.any():
            row = int(bad.argmax())
            raise fault(name, column.name, kind, int(bad.sum()), len(column), row, column.iloc[row])
    return numbers


def parse(name: str, column: pd.Series) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The column as float64, and which of its rows have each of the ``FAULTS``.

    Raises:
        InputError: when it is of a type that holds no real numbers.
    """
    kinds = pd.api.types
    real = kinds.is_numeric_dtype(column) and not kinds.is_complex_dtype(column)
    if not (real or kinds.is_string_dtype(column)):
        raise InputError(
            f"{name}: column {column.name} is of type {column.dtype}: convert it to real numbers or drop it"
        )
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    missing = column.isna().to_numpy()
    return numbers, (np.isnan(numbers) & ~missing, missing, np.isinf(numbers))


def fault(name: str, column: Any, kind: int, count: int, rows: int, first: int, value: Any) -> InputError:
    """What is wrong with a column: which of the ``FAULTS``, in how many of the rows, and its first row and value."""
    what, remedy = FAULTS[kind]
    return InputError(
        f"{name}: column {column} holds {what} in {count} of {rows} rows "
        f"(first in data row {first + 1}: {value!r}): {remedy}"
    )
