"""Numbers and missing cells as people write them: decimal commas, thousands separators, NA in many spellings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from anode import InputError
from train_flows.data.dataset import abbreviate, finite_number

ALWAYS_MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "null", "n.a.")  # in lower case, among words too
MISSING = (*ALWAYS_MISSING, "none", "missing", "-", "--", "?", "empty", "#na", "#null!")  # among numbers
USUAL = ("", "na", "n/a", "#n/a", "nan", "null", "none")  # among numbers, without a note
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
POINT_GROUPS = re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+(?:,\d*)?")  # 1.234.567,8
COMMA_GROUPS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")  # 1,234,567.8
SPACED_GROUPS = re.compile(r"[+-]?\d{1,3}(?:[ '\u2019\u00a0\u202f]\d{3})+(?:[.,]\d+)?")  # 1 234 567,8
MAYBE_GROUP = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # whose comma marks decimals or thousands
NUMBER = re.compile(  # in any such spelling, or in uneven groups
    rf"[+-]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][+-]?\d+)?|{POINT_GROUPS.pattern}|{COMMA_GROUPS.pattern}|[+-]?\d+(?:,\d{{2,3}})+"
)
CODE = re.compile(r"0\d+")  # whose leading zeros count
LONGEST = max(map(len, MISSING))
SEEN = 1000  # different texts of a column that tell numbers and words apart
MOSTLY = 0.5  # share of the different texts of a column that are numbers, beyond which others are strays


def read_spelled(
    path: Path, frame: pd.DataFrame, texts: pd.DataFrame, words: Sequence[int]
) -> tuple[pd.DataFrame, list[str]]:
    """Convert the columns of text that hold numbers in people's spellings, and mark missing cells.

    Args:
        path: of the file, for errors.
        frame: the table as pandas reads it.
        texts: the same table as text, cell by cell.
        words: places of the columns of text.

    Returns:
        The table, whose columns of text hold no blanks around it and NaN if missing, and notes. A column of numbers
        with a stray word stays text; one of whole numbers with leading zeros becomes text.

    Raises:
        InputError: if marks of decimals and of thousands contradict each other, or could be either.
    """
    cells = {i: _different(texts.iloc[:, i]) for i in words}
    numbers = {i: different for i, (_, different) in cells.items() if _are_numbers(different)}
    floats = [i for i, kind in enumerate(frame.dtypes) if kind.kind == "f"]
    mark, notes = _decimal_mark(path, numbers, texts.iloc[:, floats])
    if mark == ",":  # what pandas takes for decimals are thousands
        cells |= {i: _different(texts.iloc[:, i]) for i in floats}
        numbers |= {i: cells[i][1] for i in floats}
    unusual: dict[str, list[str]] = {}
    doubtful: dict[str, list[str]] = {}
    for i, (codes, different) in cells.items():
        name, missing = str(frame.columns[i]), MISSING if i in numbers else ALWAYS_MISSING
        maybe = {text for text in different if len(text) <= LONGEST and text.lower() in MISSING}
        if i not in numbers and _are_truth(different[:SEEN]):
            continue  # pandas reads them
        absent = {text for text in maybe if text.lower() in missing}
        for text in sorted(maybe):
            if text not in absent:
                doubtful.setdefault(text, []).append(name)
            elif text.lower() not in (USUAL if i in numbers else ("",)):
                unusual.setdefault(text, []).append(name)
        plain = pd.Series([_plain(text, mark) for text in different] if i in numbers else different, dtype="str")
        plain = plain.mask([text in absent for text in different])
        if i in numbers and all(finite_number(text) is not None for text in plain.dropna()):
            plain = pd.to_numeric(plain)
        frame.isetitem(i, plain.iloc[codes].set_axis(frame.index))
    for i, kind in enumerate(frame.dtypes):
        if kind.kind == "i" and i not in cells and (codes := texts.iloc[:, i].str.fullmatch(CODE, na=False)).any():
            notes.append(f"{frame.columns[i]}: kept as text for leading zeros, as in {texts.iloc[:, i][codes].iloc[0]}")
            frame.isetitem(i, texts.iloc[:, i])
    for text, names in unusual.items():
        notes.append(f"{abbreviate(names)}: {text} is read as missing")
    for text, names in doubtful.items():
        notes.append(f"{abbreviate(names)}: {text} is read as a word; if it is missing, leave the fields empty")
    return frame, notes


def spelled_number(text: str) -> float | None:
    """Return the finite number that a field spells, with a decimal point or comma, or with thousands, or None."""
    if DECIMAL_COMMA.fullmatch(text) or POINT_GROUPS.fullmatch(text):
        return finite_number(text if text.count(".") == 1 and "," not in text else _plain(text, ","))
    return finite_number(_plain(text, ".") if COMMA_GROUPS.fullmatch(text) or SPACED_GROUPS.fullmatch(text) else text)


def _different(column: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Return for each cell the place of its text among the different ones, without blanks around them."""
    codes, different = pd.factorize(column.fillna("").str.strip())  # a row may be short
    return codes, np.asarray(different, dtype=object).tolist()


def _are_numbers(different: Sequence[str]) -> bool:
    present = [text for text in different[:SEEN] if text.lower() not in MISSING]
    spelled = [NUMBER.fullmatch(text) or SPACED_GROUPS.fullmatch(text) for text in present]
    return not present or sum(map(bool, spelled)) > MOSTLY * len(present)


def _are_truth(different: Sequence[str]) -> bool:
    return {text.lower() for text in different} <= {"true", "false", *USUAL}


def _plain(text: str, mark: str) -> str:
    """Return a number with a decimal point and without thousands; other text as it is."""
    if SPACED_GROUPS.fullmatch(text):
        text = re.sub(r"[^\d.,+-]", "", text)
    if not NUMBER.fullmatch(text):
        return text
    return text.replace(".", "").replace(",", ".") if mark == "," else text.replace(",", "")


def _decimal_mark(path: Path, numbers: dict[int, list[str]], floats: pd.DataFrame) -> tuple[str, list[str]]:
    """Return the decimal mark of a file, with notes; refuse one whose marks contradict each other."""
    spaced = [text for different in numbers.values() for text in different if SPACED_GROUPS.fullmatch(text)]
    columns = [[re.sub(r"[ '\u2019\u00a0\u202f]", "", text) for text in different] for different in numbers.values()]
    texts = [text for different in columns for text in different if NUMBER.fullmatch(text)]
    commas, points = [text for text in texts if "," in text], [text for text in texts if "." in text]
    many = [text for text in points if POINT_GROUPS.fullmatch(text) and (text.count(".") > 1 or "," in text)]
    notes = [f"blanks or apostrophes are read as thousands separators, as in {text}" for text in spaced[:1]]
    if not (commas or many):
        return ".", notes
    points += [text for i in range(floats.shape[1]) for text in _different(floats.iloc[:, i])[1] if "." in text]
    decimal = [text for text in commas if DECIMAL_COMMA.fullmatch(text) and not MAYBE_GROUP.fullmatch(text)]
    grouped = [text for text in commas if COMMA_GROUPS.fullmatch(text) and (text.count(",") > 1 or "." in text)]
    if decimal or many:
        others = [text for text in points if not POINT_GROUPS.fullmatch(text)]
        others += [text for text in grouped if text not in many]
        if others or (points and not many):
            other, comma = [*others, *points][0], [*decimal, *many][0]
            raise InputError(
                f"{path} holds numbers with a comma ({comma}) and with a point ({other}): write all decimals with "
                "points, and thousands without a mark"
            )
        notes += ["numbers are read with decimal commas"] * bool(commas)
        return ",", notes + [f"points are read as thousands separators, as in {text}" for text in many[:1]]
    for different in columns:
        here = [text for text in different if "," in text and NUMBER.fullmatch(text)]
        odd = [text for text in here if not COMMA_GROUPS.fullmatch(text)]
        odd += [text for text in different if here and re.fullmatch(r"[+-]?\d{4,}(\.\d*)?", text)]
        if here and (odd or not (grouped or points)):
            raise InputError(
                f"{path} holds numbers such as {[*odd, *here][0]}, whose comma may mark decimals or thousands: write "
                "decimals with points, and thousands without a mark"
            )
    return ".", [*notes, f"commas are read as thousands separators, as in {[*grouped, *commas][0]}"]
