"""Tables of people's values as rows of numbers for a model, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from anode import InputError
from anode.errors import config
from cnf.tables.columns import Column
from train_flows.data.dataset import abbreviate, finite_number
from train_flows.data.grids import DIGITS

DAY = 86_400_000_000  # microseconds
TIME = r"(?P<time>[T ]+\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?)?\s*(?P<zone>Z|[+-]\d{2}:?\d{2})?"
YEAR_FIRST = re.compile(r"(?P<y>\d{4})([-/.])(?P<a>\d{1,2})\2(?P<b>\d{1,2})" + TIME)
YEAR_LAST = re.compile(r"(?P<a>\d{1,2})([-/.])(?P<b>\d{1,2})\2(?P<y>\d{4})" + TIME)
MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
MONTH_NAMED = re.compile(rf"(?:\d{{1,2}}[- ]{MONTH}|{MONTH} \d{{1,2}}),?[- ]\d{{4}}", re.IGNORECASE)
MISSING_REMEDY = "fill them in, drop those rows, or train with --missing model"

Reason = Literal["constant", "identifier", "copy", "text", "missing", "dropped"]


@config
class LeftOut:
    """A column of a table that a model does not learn.

    Attributes:
        name: of the column.
        reason: constant, identifier, copy (another column determines it), text (too many different ones), missing
            (most cells), or dropped (by the user).
        place: number of columns in front of it in samples, which have constants and copies again.
        column: how its cells are to be read, if it is a constant or a copy.
        of: the column that determines a copy.
        keys: cells of that column; empty if the copy has the same cells. None is a missing one.
        cells: cells of a copy, one for each key; or the one of a constant.
    """

    name: str
    reason: Reason
    place: int = 0
    column: Column | None = None
    of: str | None = None
    keys: tuple[float | None, ...] = ()
    cells: tuple[float | None, ...] = ()


def to_rows(name: str, frame: pd.DataFrame, columns: Sequence[Column]) -> np.ndarray:
    """Return the cells of a table as numbers (N, D), float64, NaN if missing.

    Args:
        name: of the table, for errors.
        frame: a table that has these columns, among others.
        columns: of the model.

    Raises:
        InputError: if a column is missing, or holds a cell that it cannot: an unknown category, text among numbers, a
            value out of bounds, a missing cell without ``gaps``.
    """
    frame = frame.set_axis([*map(str, frame)], axis=1)
    lacking = [column.name for column in columns if column.name not in frame]
    if lacking:
        raise InputError(f"{name} lacks the columns {abbreviate(lacking)}: it has {abbreviate([*frame])}")
    rows = np.empty((len(frame), len(columns)))
    for i, column in enumerate(columns):
        rows[:, i] = cells_of(name, frame[column.name], column)
    return rows


def to_frame(rows: np.ndarray, columns: Sequence[Column], left_out: Sequence[LeftOut] = ()) -> pd.DataFrame:
    """Return rows (N, D) as a table: texts, whole numbers, true and false, dates; constants and copies come back."""
    values = {column.name: _values(cells, column) for column, cells in zip(columns, rows.T, strict=True)}
    frame, places = pd.DataFrame(values), {column.name: i for i, column in enumerate(columns)}
    for each in left_out:
        if each.column is not None and (each.of is None or each.of in places):
            source = rows[:, 0] if each.of is None else rows[:, places[each.of]]
            frame.insert(min(each.place, frame.shape[1]), each.name, _values(_again(source, each), each.column))
    return frame


def cells_of(name: str, series: pd.Series, column: Column) -> np.ndarray:
    """Return the cells (N,) of one column of a table, as :func:`to_rows` does."""
    missing = series.isna().to_numpy()
    if missing.any() and not column.gaps:
        where, count = row_of(series, missing), f"{missing.sum()} of {len(series)} rows"
        raise InputError(
            f"{name}: column {column.name} holds missing values in {count} (first in {where}): {MISSING_REMEDY}"
        )
    if column.is_category:
        labels, names = label_codes(series)
        known = pd.Index(column.categories, dtype=object)
        spelled = [name if name in known else label(finite_number(name) or name) for name in names]  # 1.0 is 1
        codes = known.get_indexer(pd.Index(spelled, dtype=object))
        cells = np.append(codes, -1)[labels].astype(np.float64)
        bad, what = (cells < 0) & ~missing, f"its categories are {abbreviate(column.categories)}"
        cells[missing] = np.nan
    elif column.kind == "date":
        times = parse_dates(series, column.day_first)[0]
        cells = days_since(times, np.datetime64(column.first or "1970-01-01"))
        bad, what = np.isnan(cells) & ~missing, "it holds dates, such as 2024-01-31"
    else:
        cells = numbers_of(series)
        low, high = column.bounds
        inside = ((cells > low) & (cells < high) & np.isfinite(cells)) | np.isin(cells, column.atoms)
        bad, what = ~inside & ~missing, f"it holds numbers between {low:g} and {high:g}"
    if bad.any():
        raise InputError(
            f"{name}: column {column.name} cannot hold {first_of(series, bad)} ({row_of(series, bad)}): {what}; change "
            "it or drop the row"
        )
    return cells


def row_of(series: pd.Series, flags: np.ndarray) -> str:
    """Return the first flagged row of a column for a message; rows of a file keep their number in parts of it."""
    first = int(flags.argmax())
    label = series.index[first] if pd.api.types.is_integer_dtype(series.index) else first
    return f"data row {label + 1}"


def first_of(series: pd.Series, flags: np.ndarray) -> str:
    """Return the first flagged value of a column for a message."""
    value = series.iloc[int(flags.argmax())]
    return repr(value.item() if isinstance(value, np.generic) else value)


def text_of(cell: Any) -> str:
    """Return a cell as it is shown: numbers with six digits, dates without midnight; an empty text if it is missing."""
    if pd.isna(cell):
        return ""
    return f"{cell:.6g}" if isinstance(cell, (float, np.floating)) else str(cell).removesuffix(" 00:00:00")


def label_codes(series: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Return for each cell the place of its name among the names of a column, -1 if missing, and these names.

    Whole numbers are named without a point, so that 1 and 1.0 are the same category.
    """
    codes, values = pd.factorize(series)
    return codes, [label(value) for value in values]


def label(value: object) -> str:
    """Return the name of a value as a category."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, (float, np.floating)) and not isinstance(value, bool):
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    return str(value)


def numbers_of(series: pd.Series) -> np.ndarray:
    """Return the cells (N,) of a column as float64, NaN for those that are not numbers."""
    kinds = pd.api.types
    if kinds.is_numeric_dtype(series) and not kinds.is_complex_dtype(series):
        return series.to_numpy(np.float64, na_value=np.nan)
    if kinds.is_object_dtype(series) or kinds.is_string_dtype(series):
        return pd.to_numeric(series, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    return np.full(len(series), np.nan)


def parse_dates(series: pd.Series, day_first: bool | None = None) -> tuple[np.ndarray, bool | None]:
    """Return the dates of a column, datetime64[us] without a time zone (UTC), NaT for cells that are not dates.

    Args:
        series: text such as 2024-01-31, 31/01/2024 10:30 or 31 Jan 2024, or dates.
        day_first: True if 01/02/2024 is in February, False if in January; None if the column is to tell.

    Returns:
        The dates, and whether the day comes first; None if no cell tells.
    """
    if pd.api.types.is_datetime64_any_dtype(series):
        zoned = getattr(series.dtype, "tz", None) is not None
        plain = series.dt.tz_convert("UTC").dt.tz_localize(None) if zoned else series
        return plain.to_numpy("datetime64[us]"), day_first
    codes, values = pd.factorize(series)
    texts = [str(value).strip() for value in np.asarray(values, dtype=object)]
    last = [found for text in texts if day_first is None and (found := YEAR_LAST.fullmatch(text))]
    if last:
        first_is_day, second_is_day = (any(int(found[key]) > 12 for found in last) for key in "ab")
        dotted = all(found[2] == "." for found in last)
        day_first = None if first_is_day == second_is_day and not dotted else first_is_day or dotted
    plain = np.array([len(text) >= 10 and text[4] == text[7] == "-" for text in texts], dtype=bool)
    read = pd.Series(pd.to_datetime(texts, errors="coerce", utc=True, format="ISO8601")).where(plain)
    others = [i for i, is_missing in enumerate(read.isna()) if is_missing]
    spelled = [_iso(texts[i], bool(day_first)) for i in others]
    read.iloc[others] = pd.to_datetime(spelled, errors="coerce", utc=True, format="mixed")
    times = pd.DatetimeIndex(read)
    dates = np.append(times.tz_localize(None).to_numpy("datetime64[us]"), np.datetime64("NaT", "us"))
    return dates[codes], day_first


def days_since(times: np.ndarray, first: np.datetime64) -> np.ndarray:
    """Return times (N,), datetime64[us], as days since a date, float64, NaN if missing."""
    days = (times - first.astype("datetime64[us]")).astype(np.int64) / DAY
    return np.where(np.isnat(times), np.nan, days)


def is_date(text: str) -> bool:
    """Return True for text that is written as a date."""
    return any(spelling.fullmatch(text) for spelling in (YEAR_FIRST, YEAR_LAST, MONTH_NAMED))


def _iso(text: str, day_first: bool) -> str:
    """Return a date with the year first, as pandas reads it; an empty text if it is none."""
    found = YEAR_FIRST.fullmatch(text) or YEAR_LAST.fullmatch(text)
    if found is None:
        return text if MONTH_NAMED.fullmatch(text) else ""
    first, second = (found["a"], found["b"]) if found.re is YEAR_FIRST or not day_first else (found["b"], found["a"])
    if int(first) > 12:  # which pandas would take for the day
        return ""
    time = (found["time"] or "").strip(" T").rjust(5, "0")
    return f"{found['y']}-{first:0>2}-{second:0>2}" + f"T{time}" * (found["time"] is not None) + (found["zone"] or "")


def _values(cells: np.ndarray, column: Column) -> pd.Series:
    """Return the cells (N,) of a column as people's values."""
    missing = np.isnan(cells)
    if column.is_category:
        kept = np.where(missing, 0, cells).astype(np.int64)
        values = _typed(column.categories)
        return _with_gaps(values.iloc[kept].reset_index(drop=True), missing)
    if column.kind == "date":
        whole = np.round(cells) if column.step == 1 else cells
        times = np.round(np.where(missing, 0, whole) * DAY).astype("timedelta64[us]")
        return pd.Series(np.datetime64(column.first or "1970-01-01", "us") + times).mask(missing)
    if column.kind == "ordinal":
        return _with_gaps(pd.Series(np.round(np.where(missing, 0, cells)).astype(np.int64)), missing)
    if column.step:
        cells = np.round(cells, DIGITS - math.floor(math.log10(column.step)))
    return pd.Series(cells + 0.0)  # turns -0.0 into 0.0


def _typed(names: Sequence[str]) -> pd.Series:
    """Return categories as the values that they name: true and false, whole numbers, numbers, or text."""
    if set(names) <= {"False", "True"}:
        return pd.Series([name == "True" for name in names])
    numbers = [finite_number(name) for name in names]
    if any(number is None or label(number) != name for number, name in zip(numbers, names, strict=True)):
        return pd.Series(list(names), dtype="str")
    values = np.array(numbers)
    return pd.Series(values.astype(np.int64) if (values == np.round(values)).all() else values)


def _with_gaps(values: pd.Series, missing: np.ndarray) -> pd.Series:
    if not missing.any():
        return values
    types = {"b": "boolean", "i": "Int64"}
    return values.astype(types.get(values.dtype.kind, values.dtype)).mask(missing)


def _again(source: np.ndarray, left_out: LeftOut) -> np.ndarray:
    """Return the cells (N,) of a constant or of a copy; a value between the keys of a copy counts as the nearest."""
    if left_out.reason == "constant":
        return np.full(len(source), left_out.cells[0])
    if not left_out.keys:
        return source
    keys, cells = (np.array([np.nan if x is None else x for x in xs]) for xs in (left_out.keys, left_out.cells))
    order = keys.argsort()  # NaN comes last
    keys, cells = keys[order], cells[order]
    known = keys[~np.isnan(keys)]
    nearest = np.searchsorted((known[1:] + known[:-1]) / 2, source)
    of_missing = cells[-1] if np.isnan(keys[-1]) else np.nan
    return np.where(np.isnan(source), of_missing, cells[nearest.clip(0, len(known) - 1)])
