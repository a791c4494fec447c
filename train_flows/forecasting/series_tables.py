"""Time series in tables: a column of times, columns of values, and perhaps one that names the series of a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from anode import InputError
from train_flows.data import frames, tables
from train_flows.data.dataset import abbreviate
from train_flows.data.frames import first_of, row_of
from train_flows.forecasting.series_data import TimeSeries
from train_flows.forecasting.time_axis import TimeAxis, dates_of_format

ZONE = r":\d\d\S*\s*[+-](?!00:?00)\d\d:?\d\d$"  # of a time of day, other than UTC
MOSTLY = 0.5  # share of the cells of a column of text that are numbers, beyond which it is one of numbers
LARGEST, LEAST_EXTENT = 1e30, 1e-5  # values, and their range next to the largest, that single precision serves
READABLE = 0.5  # share of the cells of a column that are dates, if it is one of dates


def read_series(
    path: str | Path,
    time: str | None = None,
    series: str | None = None,
    target: Sequence[str] = (),
    day_first: bool | None = None,
    date_format: str | None = None,
) -> tuple[TimeAxis, tuple[str, ...], list[TimeSeries], list[str]]:
    """Read the series of a table.

    Args:
        path: a file that :func:`train_flows.data.tables.read` reads.
        time: column of times, numbers or dates.
        series: column that names the series of each row; None if all rows are of one series.
        target: columns of values; all other columns of numbers if empty.
        day_first: 01/02/2013 is in February (True) or in January (False); None if the column is to tell.
        date_format: format of dates, as of ``strptime``; recognised if None.

    Returns:
        The meaning of the times, names of the features, series in the order of the table, and notes.

    Raises:
        InputError: names the column, the row and the remedy.
    """
    table = tables.read(path)
    if "all" not in table.parts:
        raise InputError(f"{path} holds three tables: pass one table of series, with a column of times")
    frame, name = table.parts["all"], Path(path).name
    _check_columns(name, frame, time, series, target)
    assert time is not None, "checked"
    times, axis, notes = _read_times(name, frame[time], day_first, date_format)
    columns, left_out = _value_columns(name, frame, target, [time, *([series] if series else [])])
    notes = [*table.notes, *notes, *left_out]
    values = np.stack([_values(name, frame[column]) for column in columns], axis=1)
    labels = _labels(name, frame, series)
    found = []
    for label in pd.unique(labels):
        rows = np.flatnonzero(labels == label)
        found.append(_one_series(name, axis, label, times[rows], values[rows], rows, series, notes))
    return axis, tuple(columns), found, list(dict.fromkeys(notes))


def _check_columns(name: str, frame: pd.DataFrame, time: str | None, series: str | None, target: Sequence[str]) -> None:
    names = [*map(str, frame)]
    if time is None:
        raise InputError(f"--time is missing: name the column of times of {name}, one of {abbreviate(names)}")
    for option, column in (("--time", time), ("--series", series), *(("--target", column) for column in target)):
        if column is not None and column not in names:
            raise InputError(f"{option} {column} is not a column of {name}: choose one of {abbreviate(names)}")
    both = [column for column in target if column in (time, series)]
    if twice := [column for i, column in enumerate(target) if column in target[:i]]:
        raise InputError(f"--target names {twice[0]} twice: omit one")
    if both or time == series:
        raise InputError(
            f"column {both[0] if both else time} of {name} has two roles: name another one for one of them"
        )
    if frame.empty:
        raise InputError(f"{name} is empty: pass a table with a row for each time")


def _read_times(
    name: str, column: pd.Series, day_first: bool | None, date_format: str | None
) -> tuple[np.ndarray, TimeAxis, list[str]]:
    """Return the times (N,) of all rows, their meaning, and notes on how dates were read."""
    title, missing = str(column.name), column.isna().to_numpy()
    if missing.any():
        raise InputError(
            f"{name}: column {title} lacks a time in {row_of(column, missing)}: fill it in or drop the row"
        )
    kinds = pd.api.types
    if date_format is None and kinds.is_numeric_dtype(column) and not kinds.is_bool_dtype(column):
        if day_first is not None:
            raise InputError(f"--day-first and --month-first are for dates, column {title} of {name} holds numbers")
        times = frames.numbers_of(column)
        if (bad := ~np.isfinite(times)).any():
            raise InputError(
                f"{name}: column {title} holds {first_of(column, bad)} in {row_of(column, bad)}: correct it"
            )
        return times, TimeAxis(title), []
    notes = []
    if date_format is None:
        dates, tells = frames.parse_dates(column, day_first)
        if tells is None:
            dates, tells, notes = _assumed_order(title, column, dates)
    else:
        dates, tells = dates_of_format(column, date_format), None
    if (bad := np.isnat(dates)).any():
        if bad.mean() > READABLE and date_format is None:
            raise InputError(
                f"{name}: column {title} holds neither numbers nor dates (first {first_of(column, bad)}): name another "
                "column by --time, or the format by --date-format, such as %d.%m.%y"
            )
        wanted = f"a date of --date-format {date_format}" if date_format else "a date"
        raise InputError(
            f"{name}: column {title} holds {first_of(column, bad)} in {row_of(column, bad)}, which is not {wanted}: "
            "correct it, or pass another --date-format"
        )
    if column.astype("str").str.contains(ZONE).any():
        notes.append(f"{title}: times with a time zone are converted to UTC")
    axis = TimeAxis(title, str(dates.min().astype("datetime64[D]")), tells, date_format)
    return axis.times(dates), axis, notes


def _assumed_order(title: str, column: pd.Series, month_first: np.ndarray) -> tuple[np.ndarray, bool | None, list[str]]:
    """Return dates that can be read two ways in the order in which they increase, otherwise with the month first."""
    by_day = frames.parse_dates(column, True)[0]
    differ = (by_day != month_first) & ~(np.isnat(by_day) & np.isnat(month_first))
    if not differ.any():
        return month_first, None, []

    def increase(dates: np.ndarray) -> bool:
        return not np.isnat(dates).any() and bool((np.diff(dates) >= np.timedelta64(0)).all())

    day_first = increase(by_day) and not increase(month_first)
    first, other = ("day", "--month-first") if day_first else ("month", "--day-first")
    why = "in which order they increase" if increase(by_day) != increase(month_first) else "by assumption"
    text = str(column[differ].iloc[0])
    note = f"{title}: dates such as {text} are read with the {first} first, {why}; {other} reads them otherwise"
    return by_day if day_first else month_first, day_first, [note]


def _value_columns(
    name: str, frame: pd.DataFrame, target: Sequence[str], others: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the columns of values, and a note on columns of text that are left out."""
    if target:
        return list(target), []
    rest = [column for column in map(str, frame) if column not in others]
    found = [column for column in rest if _is_number_column(frame[column])]
    if not found:
        raise InputError(f"{name} lacks a column of numbers besides {abbreviate(others)}: name the values by --target")
    texts = [column for column in rest if column not in found]
    return found, [f"{abbreviate(texts)}: left out, not numbers"] if texts else []


def _is_number_column(column: pd.Series) -> bool:
    numbers = np.isfinite(frames.numbers_of(column))
    known = column.notna().to_numpy()
    return bool(not known.any() or numbers.sum() > MOSTLY * known.sum())


def _values(name: str, column: pd.Series) -> np.ndarray:
    """Return a column of values as float64, NaN if missing."""
    values, missing = frames.numbers_of(column), column.isna().to_numpy()
    if missing.all():
        raise InputError(f"{name}: all values of column {column.name} are missing: leave it out, by --target")
    if (bad := ~np.isfinite(values) & ~missing).any():
        what = "is not a number" if np.isnan(values[bad][0]) else "is infinite"
        raise InputError(
            f"{name}: column {column.name} holds {first_of(column, bad)} in {row_of(column, bad)}, which {what}: "
            "correct it, leave the cell empty, or name other columns by --target"
        )
    known = values[~missing]
    largest, extent = np.abs(known).max(), np.ptp(known)
    if len(known) == 1:  # which is refused as a series, or in the training part
        return values
    if extent == 0:
        raise InputError(
            f"{name}: column {column.name} is constant ({known[0]:g}): leave it out, by --target with the other columns"
        )
    if largest > LARGEST or extent < max(1 / LARGEST, LEAST_EXTENT * largest):
        raise InputError(
            f"{name}: column {column.name} has values up to {largest:g} within a range of {extent:g}, beyond the seven "
            "digits of the model: change the unit, or subtract a constant"
        )
    return values


def _labels(name: str, frame: pd.DataFrame, series: str | None) -> np.ndarray:
    """Return the name of the series of each row, (N,)."""
    if series is None:
        return np.full(len(frame), Path(name).name.partition(".")[0], dtype=object)
    missing = frame[series].isna().to_numpy()
    if missing.any():
        where = row_of(frame[series], missing)
        raise InputError(f"{name}: column {series} names no series in {where}: fill it in or drop the row")
    codes, names = frames.label_codes(frame[series])
    return np.asarray(names, dtype=object)[codes]


def _one_series(
    name: str,
    axis: TimeAxis,
    label: str,
    times: np.ndarray,
    values: np.ndarray,
    rows: np.ndarray,
    series: str | None,
    notes: list[str],
) -> TimeSeries:
    """Return the rows of one series in order of time, without rows that lack all values."""
    if (np.diff(times) < 0).any():
        notes.append(f"rows are sorted by {axis.name}")
    order = np.argsort(times, kind="stable")
    times, values, rows = times[order], values[order], rows[order]
    repeated = np.flatnonzero(np.diff(times) == 0)
    if len(repeated):
        first = repeated[0]
        pair = sorted(int(row) + 1 for row in rows[first : first + 2])
        of_series = f" of series {label}" if series else ""
        remedy = "drop one of them" if series else "drop one of them, or name the column of the series by --series"
        raise InputError(
            f"{name}: column {axis.name} holds {axis.show(float(times[first]))}{of_series} in data rows {pair[0]} and "
            f"{pair[1]}: {remedy}"
        )
    known = ~np.isnan(values).all(axis=1)
    if known.sum() < 2:
        which = f"series {label}" if series else "the series"
        raise InputError(
            f"{name}: {which} has a single observation or none (data row {int(rows[0]) + 1}), a history takes two: add "
            "rows or drop the series"
        )
    return TimeSeries(label, times[known], values[known])
