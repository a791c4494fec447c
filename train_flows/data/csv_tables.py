"""Reading CSV files as people have them: any delimiter, comments, encodings, decimal commas, and an index."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import gzip
import io
import itertools
import re
import warnings
import zlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from anode import InputError
from train_flows.data import spellings
from train_flows.data.dataset import abbreviate
from train_flows.data.frames import is_date
from train_flows.data.spellings import spelled_number

SUFFIXES = (".csv", ".csv.gz")
DELIMITERS = ",;\t| "
HEAD_BYTES = 2**22  # at the start of a file, which show its delimiter and its names
ENCODINGS = {  # by their byte-order mark; that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
UNNAMED = "Unnamed: "  # with its number, the name that pandas gives to a column
HEAD_ROWS = 1000  # that are compared with a doubtful first line
MIN_DOUBTFUL = 5  # columns from which numbers that increase along the first line are hardly data


@dataclass(frozen=True)
class _Head:
    """The first lines of a file: its delimiter, the lines to skip, and the fields of the first two others."""

    delimiter: str
    skipped: int
    first: list[str]
    second: list[str]
    names: list[str] | None  # from a comment or the first line
    in_first_line: bool  # where the names are
    title: str | None  # a line above them


def read(path: Path, text_columns: Collection[str] = ()) -> tuple[pd.DataFrame, bool, list[str]]:
    """Read a CSV file.

    Args:
        path: a file ending in ``.csv`` or ``.csv.gz``.
        text_columns: columns to keep as text, in bytes.

    Returns:
        The table, True if the file names its columns, and notes about how it was read.
    """
    try:
        with _open(path) as file:
            start = file.read(HEAD_BYTES)
        marked = next((encoding for mark, encoding in ENCODINGS.items() if start.startswith(mark)), None)
        if marked is None and b"\0" in start:
            raise InputError(f"{path} holds zero bytes, so it is not text in UTF-8: save it as UTF-8")
        try:
            return _read(path, start, marked or "utf-8-sig", text_columns)
        except UnicodeDecodeError as error:
            if marked is not None:
                raise InputError(f"{path} begins as {marked} but is damaged ({error}): save it as UTF-8") from error
            frame, named, notes = _read(path, start, "cp1252", text_columns)
            return frame, named, ["text that is not UTF-8 is read as Windows-1252 (Latin-1)", *notes]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is neither UTF-8 nor Windows-1252 ({error}): save it as UTF-8") from error
    except (OSError, EOFError, csv.Error, zlib.error) as error:
        raise InputError(f"{path} cannot be read as CSV ({str(error).strip()}): check the file") from error


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _read(
    path: Path, start: bytes, encoding: str, text_columns: Collection[str]
) -> tuple[pd.DataFrame, bool, list[str]]:
    head, what_is_first = _head(path, start.decode(encoding, errors="replace"), text_columns), []
    frame, notes = _parse_numbers(path, encoding, head, text_columns)
    if head.names is None and _holds_names(head.first, frame):
        head = dataclasses.replace(head, names=head.first, in_first_line=True)
        frame, notes = _parse_numbers(path, encoding, head, text_columns)
        what_is_first = [f"the first line holds names, {abbreviate(head.first)}: its numbers are far from all others"]
    elif head.names is None and _may_hold_names(head.first, frame):
        what_is_first = [
            f"the first line, {abbreviate(head.first)}, is taken as data; if it holds names, begin them by a letter"
        ]
    frame, what_is_left_out = _without_index(frame)
    notes += [f"the first line is a title and is left out: {head.title}"] * (head.title is not None)
    return frame, head.names is not None, [*notes, *what_is_first, *what_is_left_out]


def _parse_numbers(
    path: Path, encoding: str, head: _Head, text_columns: Collection[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Read the rows, with numbers and missing cells as people write them."""
    frame = _parse(path, encoding, head, text_columns)
    words = [
        i
        for i, (name, kind) in enumerate(frame.dtypes.items())
        if name not in text_columns and not pd.api.types.is_numeric_dtype(kind)
    ]
    notes = _short_rows(path, encoding, head) if frame.iloc[:, -1].isna().any() else []
    if not words or frame.empty:
        return frame, notes
    frame, said = spellings.read_spelled(path, frame, _parse(path, encoding, head, text_columns, as_text=True), words)
    return frame, [*said, *notes]


def _short_rows(path: Path, encoding: str, head: _Head) -> list[str]:
    """Return a note on rows with fewer fields than others, whose last cells pandas takes for missing."""
    if head.delimiter == " ":
        return []
    with _open(path) as file, io.TextIOWrapper(file, encoding, newline="") as text:
        lines = itertools.islice(text, head.skipped, None)
        counts = [len(row) for row in csv.reader(lines, delimiter=head.delimiter, skipinitialspace=True) if row]
    short = np.array(counts[head.in_first_line :]) < len(head.first)
    if not short.any() or short.all():
        return []
    first, count = int(short.argmax()) + 1, int(short.sum())
    rows = f"{count:,} row{'s' * (count > 1)}"
    return [f"{rows} with fewer fields than others (first in data row {first}): their last cells are read as missing"]


def _parse(
    path: Path, encoding: str, head: _Head, text_columns: Collection[str], as_text: bool = False
) -> pd.DataFrame:
    names = head.names or [f"x{i}" for i in range(len(head.first))]
    names = [name.strip() or f"{UNNAMED}{i}" for i, name in enumerate(names)]
    kept = [i for i, name in enumerate(names) if name in text_columns]
    try:
        with warnings.catch_warnings(), _open(path) as file:
            warnings.simplefilter("error", pd.errors.ParserWarning)  # for rows longer than the first
            return pd.read_csv(
                file,
                sep=r"\s+" if head.delimiter == " " else head.delimiter,
                header=0 if head.in_first_line else None,
                names=range(len(names)),
                dtype={i: str for i in range(len(names)) if i not in kept} if as_text else None,
                # bytes, which pandas never takes for a missing value, not even b"NA"
                converters=dict.fromkeys(kept, lambda text: text.strip().encode()),
                keep_default_na=not as_text,
                low_memory=False,  # which may cut a column into numbers and text
                skiprows=head.skipped,
                encoding=encoding,
                index_col=False,
                skipinitialspace=True,
            ).set_axis(names, axis=1)
    except UnicodeDecodeError:
        raise
    except (ValueError, pd.errors.ParserWarning) as error:
        why, remedy = str(error).strip(), "check the file"
        if isinstance(error, pd.errors.ParserWarning):
            why = f"a row has more fields than the first line, which has {len(head.first)}"
        if head.delimiter == "," and len(head.second) == 2 * len(head.first):
            remedy = "if commas mark the decimals, write points, or put semicolons between the fields"
        raise InputError(f"{path} cannot be read as CSV ({why}): {remedy}") from error


def _head(path: Path, text: str, text_columns: Collection[str]) -> _Head:
    """Find the delimiter, which cuts two lines into equally many fields with most numbers, a title, and the names."""
    lines, delimiters, comments, skipped = re.split(r"\r\n|\r|\n", text), DELIMITERS, [], 0
    for line in map(str.strip, lines):
        if re.fullmatch('"?sep=."?', line, re.IGNORECASE):  # which Excel understands
            delimiters = line.strip('"')[-1]
        elif line.startswith(("#", "%")):
            comments.append(line[1:])
        elif line:
            break
        skipped += 1
    rows = []
    for delimiter in delimiters:
        with suppress(csv.Error):  # a quote that does not end, between other delimiters
            fields = _fields(lines[skipped:], delimiter)
            has_title = _is_title(*fields)
            rows.append((delimiter, has_title, *fields[has_title : has_title + 2]))
    if not rows:
        raise InputError(f"{path} cannot be read as CSV (a quote does not end): check the file")
    delimiter, has_title, first, second = max(
        rows,
        key=lambda row: (
            len(row[2]) == len(row[3]) > 1,
            np.mean([_is_value(field) for field in row[3] or [" "]]),
            row[0] != " ",  # which words have between them
            len(row[2]),
        ),
    )
    title = lines[skipped].strip(f'{delimiter} "') or "nothing" if has_title else None
    skipped += has_title
    if not first:
        raise InputError(f"{path} is empty: pass a table with lines of data")
    names = first if not set(text_columns).isdisjoint(first) or _is_header(first, second) else None
    for comment in reversed(comments if names is None else []):
        ways = " " if len(first) == 1 else (delimiter, *DELIMITERS)
        cuts = (_fields([comment], way)[0] for way in ways)
        if names := next(
            (cut for cut in cuts if len(cut) == len(first) and all(spelled_number(n) is None for n in cut)), None
        ):
            break
    return _Head(delimiter, skipped, first, second, names, names is first, title)


def _fields(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """Return the fields of the first three lines that are not blank."""
    stripped = (line.strip(None if delimiter == " " else " ") for line in lines)
    rows = (row for row in csv.reader(stripped, delimiter=delimiter, skipinitialspace=True) if row)
    return [next(rows, []) for _ in range(3)]


def _is_title(first: list[str], second: list[str], third: list[str]) -> bool:
    """Return True for a line of one field, or of none, over a line of words over a line of as many fields of data."""
    alone = not any(first[1:]) and len(first) in (1, len(second))
    words = len(second) == len(third) > 1 and not any(map(_is_value, second))
    return alone and words and any(spelled_number(field) is not None for field in third)


def _is_value(field: str) -> bool:
    return spelled_number(field) is not None or field.lower() in spellings.MISSING


def _is_header(first: list[str], second: list[str]) -> bool:
    """Return True for names: without numbers, with a gap over an index, or whole numbers over a line without any.

    A date is data.
    """
    if all(spelled_number(f) is None and not is_date(f) for f in first) or not first[0]:
        return True
    whole = all(field.isdecimal() for field in first) and len(set(first)) == len(first)
    return whole and not any(field.lstrip("+-").isdecimal() for field in second)


def _holds_names(first: list[str], frame: pd.DataFrame) -> bool:
    """Return True for a first line of increasing numbers, farther from all other rows than these are from each other.

    Words that do not occur again may stand between the numbers.
    """
    numbers = {i: value for i, field in enumerate(first) if (value := spelled_number(field)) is not None}
    words = [i for i in range(len(first)) if i not in numbers]
    if len(numbers) < 2 or not _increase([*numbers.values()]):
        return False
    rest = frame.iloc[1:].apply(pd.to_numeric, errors="coerce")
    if any(not re.match(r"[^\W\d_]", first[i]) or (frame.iloc[1:, i] == first[i]).any() for i in words):
        return False
    others, values = rest.iloc[:, [*numbers]].to_numpy(np.float64), np.array([*numbers.values()])
    others = others[np.isfinite(others)]
    if len(others) == 0:
        return False
    low, high = others.min(), others.max()
    return bool((np.maximum(low - values, values - high) > high - low).all())


def _may_hold_names(first: list[str], frame: pd.DataFrame) -> bool:
    """Return True for a first line of many increasing numbers over rows that mostly do not increase."""
    numbers = [value for field in first if (value := spelled_number(field)) is not None]
    if not MIN_DOUBTFUL <= len(numbers) == len(first) or not _increase(numbers):
        return False
    rest = frame.iloc[1:HEAD_ROWS].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    return bool((np.diff(rest, axis=1) > 0).all(axis=1).mean() < 0.5)


def _increase(values: Sequence[float]) -> bool:
    return all(a < b for a, b in pairwise(values))


def _without_index(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Leave out columns without a name: empty ones, and first ones that number or name the rows; say so in notes."""
    unnamed, notes = frame.columns.str.startswith(UNNAMED), []
    frame = frame.loc[:, [not (no_name and frame.iloc[:, i].isna().all()) for i, no_name in enumerate(unnamed)]]
    while frame.shape[1] > 1 and frame.columns[0].startswith(UNNAMED):
        first = frame.iloc[:, 0]
        tells_rows = pd.api.types.is_string_dtype(first) or (
            pd.api.types.is_numeric_dtype(first) and np.array_equal(first, first.astype(np.float64).round())
        )
        if not first.is_unique or not tells_rows:
            notes.append("the first column lacks a name; if it numbers the rows, write the table without its index")
            break
        frame, notes = frame.iloc[:, 1:], ["the first column lacks a name and tells the rows apart: it is left out"]
    return frame, notes
