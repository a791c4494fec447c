"""The kinds of the columns of a table, found from their values, and the columns that a model can do without."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import numpy as np
import pandas as pd

from anode import InputError
from anode.errors import check_choice
from cnf.tables.columns import Column
from train_flows.data import frames, scales
from train_flows.data.dataset import abbreviate, class_order, finite_number
from train_flows.data.frames import LeftOut, Reason
from train_flows.data.grids import find_grid
from train_flows.data.spellings import CODE

LEAVING_OUT: dict[str, Reason] = {"drop": "dropped", "id": "identifier"}  # kinds of a user
WHY: dict[Reason, str] = {
    "constant": "always {1}: left out; samples have it again",
    "copy": "follows from {0.of}: left out; samples have it again",
    "identifier": "left out as it names the rows; --kind {0.name}=category keeps it",
    "text": "left out: too many different texts; --kind {0.name}=category keeps it",
    "missing": "left out: most cells are missing; --missing model keeps it",
    "dropped": "left out",
}
KINDS = ("continuous", "positive", "bounded", "ordinal", "category", "date", *LEAVING_OUT)
FEW_TEXTS, TEXT_SHARE = 100, 0.2  # distinct texts beyond both, number and share of the rows, do not count as categories
FREE_TEXT = 0.5  # share of the rows: more distinct texts do not count as categories, however few
REPEATED = 0.5  # different values for each row, at most, of a column in which values may recur
SEEN_ROWS = 2000  # of a table of numbers, that tell if a column may hold categories or common values
SEEN_TEXTS = 1000  # distinct texts that tell numbers, dates and words apart
MOSTLY = 0.5  # share of the distinct texts that are numbers, or dates, beyond which others are strays
MOSTLY_MISSING = 0.5  # share of missing cells beyond which dropping the column is better than dropping the rows
LISTED = 40  # columns of a table of kinds
PER_VALUE = 5  # rows for each distinct value, at least, for a column to be the renaming of another
IS_ID = re.compile(
    r"(?i:(^|.*[_\W])(id|idx|index|uid|uuid|key|no|nr|row|rownames?|rowid|number)|unnamed\W.*)|.*[a-z]I[dD]"
)
MARKED_NUMBER = re.compile(r"[^\w.,]*[+-]?\d[\d.,]*(?:[^\w.,]*|\s?(?P<unit>[^\W\d_]{1,5}))")


@dataclass(frozen=True)
class FoundColumns:
    """The columns of a table.

    Attributes:
        columns: those to learn.
        left_out: the others.
        notes: sentences on the rows and the learned columns.
        ranges: smallest and largest cell of each column.
        missing: share of missing cells of each column.
    """

    columns: tuple[Column, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]
    missing: tuple[float, ...]


def find_columns(
    frame: pd.DataFrame,
    *,
    kinds: Mapping[str, str] = {},
    bounds: Mapping[str, scales.Bounds] = {},
    gaps: bool = False,
    name: str = "the table",
) -> FoundColumns:
    """Find the kinds of the columns of a table.

    Of two columns with the same cells, up to a renaming, the first one is kept. Without ``gaps``, columns of mostly
    missing cells are left out, and the kinds are those of the complete rows.

    Args:
        frame: the table.
        kinds: kind of a column by its name, if the user knows better: continuous, positive, bounded, ordinal,
            category, date; id or drop leaves it out.
        bounds: lower and upper bound of a column by its name; None without a bound.
        gaps: keep missing cells, to be learned.
        name: of the table, for errors.

    Raises:
        InputError: if a column cannot be used as it is, or as the user says.
    """
    frame = frame.set_axis([str(column) for column in frame], axis=1)
    if frame.empty:
        raise InputError(f"{name} is empty: pass a table with rows and columns")
    if frame.columns.has_duplicates:
        raise InputError(f"{name} has more than one column {frame.columns[frame.columns.duplicated()][0]}: rename them")
    _check_options(name, frame, kinds, bounds)
    for column, kind in frame.dtypes.items():
        if isinstance(kind, np.dtype) and kind.kind == "O" and kinds.get(str(column)) not in LEAVING_OUT:
            _check_cells(name, frame[column])
    shares = frame.isna().mean().to_dict()
    reasons = {
        str(column): reason
        for i, (column, series) in enumerate(frame.items())
        if (reason := _reason(series, i == 0, kinds.get(str(column)), shares[column], gaps)) is not None
    }
    for column in bounds:
        kind = kinds.get(column) or ("category" if _nature(frame[column]) != "numbers" else "continuous")
        if column in reasons or kind in ("category", "date"):
            raise InputError(f"--bounds {column} is for numbers, and {column} is left out or holds others: omit it")
    used = [column for column in frame if column not in reasons]
    if not used:
        raise InputError(f"{name} holds nothing to learn: all columns are identifiers, free text, or missing")
    frame, notes = (frame, []) if gaps else _complete_rows(name, frame, used)
    columns: dict[str, Column] = {}
    cells: dict[str, np.ndarray] = {}
    left_out, sources = [], {}
    for column, series in ((str(column), series) for column, series in frame.items()):
        place = len(columns) + sum(each.column is not None for each in left_out)
        if column in reasons:
            left_out.append(LeftOut(column, reasons[column], place))
            continue
        found, said = _column(name, series, kinds.get(column), bounds.get(column, (None, None)), gaps)
        x = frames.cells_of(name, series, found)
        distinct = np.unique(x, equal_nan=True)
        keys = _keys(x, distinct, found)
        source = next((sources[key] for key in keys if key in sources), None)
        if len(distinct) == 1:
            left_out.append(LeftOut(column, "constant", place, found, cells=(float(x[0]),)))
        elif source is not None and column not in kinds:
            left_out.append(_copy(place, found, x, columns[source], cells[source]))
        else:
            for key in keys:
                sources.setdefault(key, column)
            columns[column], cells[column] = found, x
            notes += said
    if not columns:
        raise InputError(f"{name} holds nothing to learn: all columns are constant")
    return FoundColumns(
        tuple(columns.values()),
        tuple(left_out),
        tuple(notes),
        tuple((float(np.nanmin(x)), float(np.nanmax(x))) for x in cells.values()),
        tuple(shares[column] for column in columns),
    )


def has_discrete(frame: pd.DataFrame) -> bool:
    """Return True if a column of numbers holds categories, a value far more common than all others, or round numbers.

    Only columns that may do so, by about 2,000 of the rows, are looked at as a whole.
    """
    if any(pd.api.types.is_complex_dtype(kind) for kind in frame.dtypes):
        return False
    rows = np.sort(frame.iloc[:: max(1, len(frame) // SEEN_ROWS)].to_numpy(np.float64), axis=0)
    k = max(1, int(scales.COMMON / 2 * len(rows)))
    different = (rows[1:] != rows[:-1]).sum(axis=0)
    few, repeated = different < scales.MAX_CATEGORIES, different < REPEATED * len(rows)
    for i in np.flatnonzero(few | repeated | (rows[k:] == rows[:-k]).any(axis=0)):
        x = frame.iloc[:, i].to_numpy(np.float64)
        found, counts = np.unique(x, return_counts=True)
        if len(found) == 1 or not np.isfinite(found).all():
            continue
        if _are_categories(x) or scales.common_values(found, counts):
            return True
        if scales.recurring_values(x, scales.grid_of(x, scales.is_whole(x))[0]):
            return True
    return False


def describe(found: FoundColumns) -> str:
    """Return lines of name, kind and treatment of each column, aligned; of many columns, the first ones."""
    learned = [
        (abbreviate([column.name]), column.kind, _treatment(column, *ends, share))
        for column, ends, share in zip(found.columns, found.ranges, found.missing, strict=True)
    ]
    others = [(abbreviate([each.name]), each.reason, _why(each)) for each in found.left_out]
    lines: list[tuple[str, str, str]] = [*_first(learned), *_first(others)]
    widths = [max(len(line[i]) for line in lines) for i in (0, 1)]
    return "\n".join(f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {what}" for name, kind, what in lines)


def _first(lines: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Return the first lines, and one that counts the kinds of the others."""
    rest = Counter(kind for _, kind, _ in lines[LISTED:])
    more = ", ".join(f"{count:,} {kind}" for kind, count in rest.items())
    return [*lines[:LISTED], *[("...", "", f"and {more}")] * bool(more)]


def _check_options(
    name: str, frame: pd.DataFrame, kinds: Mapping[str, str], bounds: Mapping[str, scales.Bounds]
) -> None:
    for option, chosen in (("kind", kinds), ("bounds", bounds)):
        for column in chosen:
            if column not in frame:
                nearest = get_close_matches(column, [*frame], n=1)
                hint = f" (did you mean {nearest[0]}?)" if nearest else ""
                raise InputError(
                    f"--{option} {column} is not a column of {name}: choose one of {abbreviate([*frame])}{hint}"
                )
    for column, kind in kinds.items():
        check_choice(f"--kind {column}", kind, KINDS)
    for column, (low, high) in bounds.items():
        if low is not None and high is not None and low >= high:
            raise InputError(f"--bounds {column}={low:g}:{high:g}: the lower bound must be below the upper one")


def _complete_rows(name: str, frame: pd.DataFrame, used: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows without missing cells in the columns used, and a note on the others."""
    complete = frame[used].notna().all(axis=1)
    if not complete.any():
        raise InputError(f"{name} misses a cell in every row: train with --missing model")
    note = f"{(~complete).sum():,} of {len(frame):,} rows have missing cells and are left out"
    return frame[complete], [note] * (not complete.all())


def _check_cells(name: str, series: pd.Series) -> None:
    """Raise an error for a column whose cells hold several values each."""
    several = series.map(lambda value: isinstance(value, (list, tuple, dict, set, np.ndarray))).to_numpy(bool)
    if several.any():
        kind = type(series.iloc[int(several.argmax())]).__name__
        raise InputError(
            f"{name}: column {series.name} holds a {kind} ({frames.row_of(series, several)}): write one value in a "
            f"cell, or pass --kind {series.name}=drop"
        )


def _reason(series: pd.Series, is_first: bool, kind: str | None, missing: float, gaps: bool) -> Reason | None:
    """Return why a column is left out whatever the others are, or None."""
    if kind in LEAVING_OUT:
        return LEAVING_OUT[kind]
    if missing == 1 or (kind is None and not gaps and missing > MOSTLY_MISSING):
        return "missing"
    if kind is not None:
        return None
    count = len(series)
    if _nature(series) == "words":
        values = series.dropna()
        count, different = len(values), values.nunique()
        if different <= scales.MAX_CATEGORIES:
            return None
        if different == count:
            return "identifier"
        return "text" if different > min(FREE_TEXT * count, max(FEW_TEXTS, TEXT_SHARE * count)) else None
    named = IS_ID.fullmatch(str(series.name))
    if (is_first or named) and missing == 0 and pd.api.types.is_integer_dtype(series) and count > scales.MAX_CATEGORIES:
        numbers = series.to_numpy(np.float64)
        in_order = numbers[0] in (0, 1) and (np.diff(numbers) == 1).all()
        return "identifier" if in_order or (named and series.is_unique) else None
    return None


def _nature(series: pd.Series) -> Literal["numbers", "dates", "truth", "words"]:
    """Return what the cells of a column are; text is numbers or dates if most of its different cells are.

    Leading zeros make words.
    """
    kinds = pd.api.types
    if kinds.is_bool_dtype(series):
        return "truth"
    if kinds.is_numeric_dtype(series):
        return "numbers"
    if kinds.infer_dtype(series, skipna=True) == "boolean":
        return "truth"
    if kinds.is_datetime64_any_dtype(series):
        return "dates"
    if not (kinds.is_object_dtype(series) or kinds.is_string_dtype(series)):
        return "words" if isinstance(series.dtype, pd.CategoricalDtype) else "numbers"
    texts = [frames.label(value) for value in pd.unique(series.dropna())[:SEEN_TEXTS]]
    if any(CODE.fullmatch(text) for text in texts):
        return "words"
    if np.mean([finite_number(text) is not None for text in texts]) > MOSTLY:
        return "numbers"
    if np.mean([frames.is_date(text.strip()) for text in texts]) > MOSTLY:
        return "dates"
    marked = [found for text in texts if (found := MARKED_NUMBER.fullmatch(text))]
    units = {found["unit"] for found in marked}
    same = units == {None} or (len(units) == 1 and len(marked) == len(texts) > scales.MAX_CATEGORIES)
    return "numbers" if same and len(marked) > MOSTLY * len(texts) else "words"


def _column(
    name: str, series: pd.Series, kind: str | None, bounds: scales.Bounds, gaps: bool
) -> tuple[Column, tuple[str, ...]]:
    """Return a column, and notes on it."""
    gaps, nature = gaps and bool(series.isna().any()), _nature(series)
    if kind == "category" or (kind is None and nature in ("words", "truth")):
        return _category(name, series, nature, gaps, asked=kind is not None), ()
    if kind == "date" or (kind is None and nature == "dates"):
        return _date(name, series, gaps)
    is_text = pd.api.types.is_object_dtype(series) or pd.api.types.is_string_dtype(series)
    if not (is_text or pd.api.types.is_numeric_dtype(series)) or pd.api.types.is_complex_dtype(series):
        raise InputError(
            f"{name}: column {series.name} is of type {series.dtype}: convert it to real numbers, or pass --kind "
            f"{series.name}=drop"
        )
    values = frames.numbers_of(series)
    missing = series.isna().to_numpy()
    _refuse(name, series, np.isnan(values) & ~missing, "text")
    _refuse(name, series, np.isinf(values), "infinite values")
    x = values[~missing]
    if kind is None and bounds == (None, None) and _are_categories(x):
        return _category(name, series, nature, gaps, asked=False), ()
    column, notes = scales.number_column(name, series, values, kind, bounds)
    return dataclasses.replace(column, gaps=gaps), notes


def _are_categories(x: np.ndarray) -> bool:
    """Return True for a few numbers (N,) that are whole, or recur without being on a grid."""
    few = np.unique(x)
    if len(few) > scales.MAX_CATEGORIES:
        return False
    return scales.is_whole(few) or (len(few) * PER_VALUE <= len(x) and find_grid(x) is None)


def _category(name: str, series: pd.Series, nature: str, gaps: bool, asked: bool) -> Column:
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.cat.remove_unused_categories()
        return Column(str(series.name), "category", tuple(map(frames.label, series.cat.categories)), gaps=gaps)
    values = frames.numbers_of(series) if nature == "numbers" and not asked else series
    names = frames.label_codes(pd.Series(values))[1]
    if asked and len(names) > max(scales.MAX_CATEGORIES, FREE_TEXT * len(series)):
        raise InputError(
            f"{name}: column {series.name} has {len(names)} different values in {len(series)} rows, which are not "
            f"categories: pass --kind {series.name}=drop, or leave the option out"
        )
    return Column(str(series.name), "category", tuple(sorted(names, key=class_order)), gaps=gaps)


def _date(name: str, series: pd.Series, gaps: bool) -> tuple[Column, tuple[str, ...]]:
    times, day_first = frames.parse_dates(series)
    _refuse(name, series, np.isnat(times) & series.notna().to_numpy(), "other text than dates such as 2024-01-31")
    first = np.nanmin(times).astype("datetime64[D]")
    days = frames.days_since(times, first)
    step = 1.0 if (np.isnan(days) | (days == np.round(days))).all() else 0.0
    notes = ()
    if day_first is None and frames.YEAR_LAST.fullmatch(str(series.dropna().iloc[0]).strip()):
        notes = (f"{series.name}: the dates do not show if the day or the month comes first: read as month/day/year",)
    column = Column(str(series.name), "date", step=step, gaps=gaps, first=str(first), day_first=bool(day_first))
    return column, notes


def _refuse(name: str, series: pd.Series, flags: np.ndarray, what: str) -> None:
    """Raise an error for cells that are flagged, with the remedies."""
    if flags.any():
        value, column = frames.first_of(series, flags), series.name
        remedy = f"correct or drop these rows, or pass --kind {column}=category, or --kind {column}=drop"
        if MARKED_NUMBER.fullmatch(text := value.strip("'")) and finite_number(text) is None:
            remedy = f"write numbers without signs and units, or pass --kind {column}=drop"
        if re.search(r"\d,\d", value):
            remedy = "write decimals with points, and thousands without a mark"
        raise InputError(
            f"{name}: column {column} holds {what} in {flags.sum()} of {len(series)} rows "
            f"(first in {frames.row_of(series, flags)}: {value}): {remedy}"
        )


def _keys(x: np.ndarray, distinct: np.ndarray, column: Column) -> list[bytes]:
    """Return keys that columns share if they have the same cells, or the same ones up to a renaming."""
    keys = [] if column.is_category else [b"cells" + np.where(np.isnan(x), np.nan, x + 0.0).tobytes()]
    if PER_VALUE * len(distinct) <= len(x):
        keys.append(b"names" + pd.factorize(x, use_na_sentinel=False)[0].astype(np.int32).tobytes())
    return [hashlib.blake2b(key).digest() for key in keys]


def _copy(place: int, column: Column, x: np.ndarray, of: Column, source: np.ndarray) -> LeftOut:
    """Return a column as a copy of another one, with the same cells or with one cell for each of its cells."""
    if not column.is_category and np.array_equal(x, source, equal_nan=True):
        return LeftOut(column.name, "copy", place, column, of.name)
    keys, index = np.unique(source, return_index=True, equal_nan=True)
    plain = [tuple(None if np.isnan(cell) else float(cell) for cell in cells) for cells in (keys, x[index])]
    return LeftOut(column.name, "copy", place, column, of.name, *plain)


def _why(left_out: LeftOut) -> str:
    value = _named(left_out.cells[0], left_out.column) if left_out.reason == "constant" else ""
    return WHY[left_out.reason].format(left_out, value)


def _named(cell: float | None, column: Column | None) -> str:
    if column is None or cell is None:
        return "missing"
    return frames.text_of(frames.to_frame(np.array([[cell]]), [column]).iloc[0, 0])


def _treatment(column: Column, low: float, high: float, missing: float) -> str:
    """Return a sentence on what happens to a column."""
    if column.is_category:
        count = len(column.categories)
        parts = [f"{count} {'category' if count == 1 else 'categories'}: {abbreviate(column.categories)}"]
    else:
        parts = [f"{_named(low, column)} to {_named(high, column)}"]
        parts += [f"in steps of {column.step:g}"] * (column.step > 0 and column.kind != "date")
        parts += [{"log": "logarithm", "logit": "logit", "asinh": "asinh, for heavy tails"}.get(column.scale, "")]
        named = ", ".join(f"{atom:g}" for atom in column.atoms)
        parts += [f"{len(column.atoms)} separate values" if column.recurs else f"separate values {named}"] * bool(named)
    parts += [f"{missing:.1%} missing" + ", learned" * column.gaps] * (missing > 0)
    return "; ".join(filter(None, parts))
