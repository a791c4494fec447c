"""Tables as data sets: columns of kinds or of real numbers, splits, and large files that stay on disk."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from anode import InputError
from cnf.tables import Column
from train_flows.data import benchmark_tables, column_checks, frames, kinds, tables
from train_flows.data.dataset import (
    MAX_HEAD,
    Dataset,
    Split,
    abbreviate,
    finite_number,
    three_splits,
)
from train_flows.data.grids import find_grid

MIN_ROWS = {"all": tables.MIN_ROWS, "train": tables.MIN_ROWS, "validation": 2, "test": 2}
PAIRS = {"kind": "age=continuous", "bounds": "price=0:"}
NOT_GIVEN = {  # reasons that a column is left out for, with remedies
    "constant": "it is constant; omit it",
    "copy": "{0.of} determines it; give that one alone",
    "identifier": "it names the rows; omit it, or pass --kind {0.name}=category",
    "text": "it holds too many different texts; omit it, or pass --kind {0.name}=category",
    "missing": "most of its cells are missing; omit it, or pass --missing model",
    "dropped": "--kind drops it; omit either option",
}
FEW_GAPS = 0.05  # share of the rows with missing cells, up to which they are left out
CHUNK_ROWS = 50_000  # rows of a mapped table that are checked together


def load(
    path: str | Path,
    seed: int = 0,
    jitter: bool = True,
    given: Sequence[str] = (),
    split: bool = True,
    dtype: torch.dtype = torch.float32,
    kind: Sequence[str] = (),
    bounds: Sequence[str] = (),
    missing: str = "auto",
    weights: str | None = None,
    model: Mapping[str, Any] | None = None,
    table: tables.Table | None = None,
) -> Dataset:
    """Read a table to learn its density; the arguments are those of :func:`train_flows.data.load_density_data`.

    A ``table`` in memory, with its weights, takes the place of the file, whose path is then its name.

    The rows are split 80/10/10 by the seed; an NPZ file of train, validation and test keeps its split. A large NPY
    file stays on disk, with at most 100,000 rows for validation and for testing.

    Raises:
        InputError: if the file is not a table of numbers, or has columns without a density.
    """
    if model is not None and "columns" in model:
        known, contexts = ([Column(**values) for values in model[part]] for part in ("columns", "given"))
        return load_like(path, known, contexts, seed, split, weights)
    asked = bool(kind or bounds or missing == "model")
    mapped = None if table is not None or given or asked else tables.open_mapped(path)
    if mapped is not None and weights is not None:
        raise InputError(f"--weights {weights} is not for {path}, which stays on disk: draw its rows by their weights")
    if mapped is not None:
        return _load_mapped(Path(path).name, mapped, seed, jitter, split, dtype)
    if table is None:
        table = tables.with_weights(str(path), tables.read(path), weights, needed=split)
    columns = others(table.parts, given, "given", path)
    if model is None:
        asked |= any(_is_mixed(frame) for frame in table.parts.values())
        if asked and not jitter:
            raise InputError(f"--no-jitter is for tables of numbers, {path} holds other kinds of columns: omit it")
        if asked or (jitter and kinds.has_discrete(next(iter(table.parts.values())))):
            return _load_mixed(path, table, seed, given, split, kind, bounds, missing)
    parts = {}
    for part, frame in table.parts.items():
        x = numbers_of(path, part, frame[[*columns]], split)
        c = numbers_of(path, part, frame[[*given]], split) if given else None
        parts[part] = Split(
            torch.from_numpy(x), c=None if c is None else torch.from_numpy(c), weights=table.weights_of(part)
        )
    raw = Dataset(
        Path(path).name,
        *arranged(parts, seed, split),
        columns,
        context=tuple(given),
        is_table=True,
        named=table.named,
        features=tuple(next(iter(table.parts.values()))),
        notes=table.notes,
    )
    return _checked(raw, seed, jitter, dtype)


def load_like(
    path: str | Path,
    columns: Sequence[Column],
    given: Sequence[Column],
    seed: int = 0,
    split: bool = False,
    weights: str | None = None,
) -> Dataset:
    """Read a table with the columns of a model; rows with missing cells that it does not know are left out.

    Rows are weighted if the table has the column ``weights``.

    Raises:
        InputError: if a column is missing, or a cell is none that the model knows.
    """
    table = tables.with_weights(str(path), tables.read(path), weights, needed=split)
    return _of_kinds(path, table, columns, given, seed, split)


def _load_mixed(
    path: str | Path,
    table: tables.Table,
    seed: int,
    given: Sequence[str],
    split: bool,
    kind: Sequence[str],
    bounds: Sequence[str],
    missing: str,
) -> Dataset:
    """Find the kinds of the columns of a table, those given first, and return its rows as cells."""
    frame = pd.concat([*table.parts.values()], ignore_index=True) if len(table.parts) > 1 else table.parts["all"]
    others = [name for name in frame if name not in given]
    gaps = missing == "model" or (missing == "auto" and frame.isna().any(axis=1).mean() > FEW_GAPS)
    found = kinds.find_columns(
        frame[[*given, *others]],
        kinds=dict(_pair("kind", text) for text in kind),
        bounds={name: _interval(name, value) for name, value in (_pair("bounds", text) for text in bounds)},
        gaps=gaps,
        name=str(path),
    )
    if lost := next((each for each in found.left_out if each.name in given), None):
        raise InputError(f"--given {lost.name} cannot be given: {NOT_GIVEN[lost.reason].format(lost)}")
    contexts = [column for column in found.columns if column.name in given]
    columns = [column for column in found.columns if column.name not in given]
    if not columns:
        raise InputError(f"{path} holds nothing to learn given {abbreviate(given)}: give fewer columns")
    dataset = _of_kinds(path, table, columns, contexts, seed, split)
    notes = (*table.notes, *found.notes)
    return dataclasses.replace(dataset, notes=notes, left_out=found.left_out, overview=kinds.describe(found))


def _of_kinds(
    path: str | Path, table: tables.Table, columns: Sequence[Column], given: Sequence[Column], seed: int, split: bool
) -> Dataset:
    """Return the rows of a table as cells of columns; those that miss a cell of a column without gaps are left out."""
    complete, parts, left_out = [column.name for column in (*columns, *given) if not column.gaps], {}, 0
    for part, frame in table.parts.items():
        if absent := [column.name for column in (*columns, *given) if column.name not in frame]:
            raise InputError(f"{path} lacks the column {absent[0]}: it has {abbreviate([*map(str, frame)])}")
        rows = frame[complete].notna().all(axis=1).to_numpy()
        kept, name, least = frame[rows], _name(path, part), MIN_ROWS[part] if split else 1
        if len(kept) < least:
            raise InputError(f"{name} has {len(kept)} rows without missing cells: at least {least} are needed")
        x, c = (torch.from_numpy(frames.to_rows(name, kept, each)) for each in (columns, given))
        parts[part] = Split(x, c=c if given else None, weights=table.weights_of(part, rows))
        left_out += len(frame) - len(kept)
    notes = [f"{left_out:,} rows miss a cell and are left out"] * (left_out > 0)
    return Dataset(
        Path(path).name,
        *arranged(parts, seed, split),
        columns=tuple(column.name for column in columns),
        context=tuple(column.name for column in given),
        is_table=True,
        named=table.named,
        features=tuple(frame),
        kinds=tuple(columns),
        given=tuple(given),
        notes=(*table.notes, *notes),
    )


def _is_mixed(frame: pd.DataFrame) -> bool:
    """Return True for a table with text, truth values, dates or missing cells."""
    plain = pd.api.types.is_numeric_dtype
    return any(not plain(column) or column.dtype == bool or column.isna().any() for _, column in frame.items())


def _pair(option: str, text: str) -> tuple[str, str]:
    name, mark, value = text.rpartition("=")
    if not mark:
        raise InputError(f"--{option} {text} must be NAME=VALUE, such as {PAIRS[option]}")
    return name, value


def _interval(name: str, text: str) -> tuple[float | None, float | None]:
    """Return the ends of LOW:HIGH, either of which may be empty."""
    ends = text.split(":")
    numbers = [finite_number(end) for end in ends]
    if len(ends) != 2 or any(end and number is None for end, number in zip(ends, numbers, strict=True)):
        raise InputError(f"--bounds {name}={text} must be LOW:HIGH, such as {name}=0: or {name}=0:100")
    return numbers[0], numbers[1]


def load_benchmark(name: str, root: str | Path, dtype: torch.dtype = torch.float32) -> Dataset:
    """Load one of the benchmark tables, prepared and split as published."""
    arrays = benchmark_tables.read(name, root)
    train, validation, test = (Split(torch.from_numpy(arrays[part])) for part in tables.PARTS)
    columns = tuple(f"x{i}" for i in range(train.x.shape[1]))
    raw = Dataset(name, train, validation, test, columns, is_table=True, named=False)
    return _checked(raw, jitter=False, dtype=dtype)


def others(frames: Mapping[str, pd.DataFrame], chosen: Sequence[str], option: str, path: object) -> tuple[str, ...]:
    """Return the columns that an option does not choose."""
    names = [*next(iter(frames.values()))]
    if repeated := [column for column in dict.fromkeys(chosen) if chosen.count(column) > 1]:
        raise InputError(f"--{option} {repeated[0]} is typed more than once: omit one")
    for column in chosen:
        if column not in names:
            nearest = get_close_matches(column, names, n=1)
            hint = f" (did you mean {nearest[0]}?)" if nearest else ""
            raise InputError(f"--{option} {column} is not a column of {path}: choose one of {abbreviate(names)}{hint}")
    others = tuple(name for name in names if name not in chosen)
    if chosen and not others:
        raise InputError(f"--{option} {' '.join(chosen)} leaves no column of {path} to learn: omit one")
    return others


def numbers_of(path: object, part: str, frame: pd.DataFrame, split: bool) -> np.ndarray:
    """Return a part of a table as numbers (N, D)."""
    return tables.numbers(_name(path, part), frame, MIN_ROWS[part] if split else 1)


def _name(path: object, part: str) -> str:
    return str(path) if part == "all" else f"{path}: {part}"


def arranged(parts: Mapping[str, Split], seed: int, split: bool) -> tuple[Split, Split, Split]:
    """Return three splits: those of the file, or of all its rows."""
    if "all" in parts:
        return three_splits(parts["all"], seed, split)
    train, validation, test = (parts[part] for part in tables.PARTS)
    return (train, validation, test) if split else (train.take(slice(0)), validation.take(slice(0)), test)


def _checked(raw: Dataset, seed: int = 0, jitter: bool = True, dtype: torch.dtype = torch.float32) -> Dataset:
    """Check the columns of a table in double precision, add noise to those on a grid, and return it in a precision."""
    for part in (raw.train, raw.validation, raw.test):
        for values, columns in ((part.x, raw.columns), (part.c, raw.context)):
            if values is not None and not part.mapped:
                column_checks.check_range(raw.name, values.numpy(), columns, dtype)
    dataset, heavy, notes = raw, [], raw.notes
    if len(raw.train):
        exact, columns = raw.train.head().x.double().numpy(), raw.columns
        column_checks.check_constant(raw.name, exact, columns, dtype)
        found = ((column, find_grid(values)) for column, values in zip(columns, exact.T, strict=True))
        grids = {column: grid for column, grid in found if grid is not None}
        dataset = raw.jittered(grids, seed) if jitter else raw
        heavy, scale_notes = column_checks.scale_notes(exact, columns)
        notes += (
            *column_checks.grid_note(columns, grids, jitter),
            *column_checks.notes(dataset.train.head().x.double().numpy(), columns, grids),
            *scale_notes,
            *column_checks.far_from_zero(exact, columns, dtype),
            *_repeated_rows(dataset),
        )
    if raw.train.c is not None:
        given = raw.train.c.double().numpy()
        notes += (
            *column_checks.scale_notes(given, raw.context)[1],
            *column_checks.far_from_zero(given, raw.context, dtype),
        )
    train, validation, test = (part.to(dtype) for part in (dataset.train, dataset.validation, dataset.test))
    return dataclasses.replace(
        dataset, train=train, validation=validation, test=test, heavy_tailed=tuple(heavy), notes=notes
    )


def _repeated_rows(dataset: Dataset) -> tuple[str, ...]:
    """Return a note on test rows that are training rows; rows of mapped tables are not compared."""
    if dataset.train.mapped:
        return ()
    seen = {row.tobytes() for row in dataset.train.x.numpy()}
    count = sum(row.tobytes() in seen for row in dataset.test.x.numpy())
    return (f"{count} of {len(dataset.test)} test rows are training rows too",) if count else ()


def _load_mapped(name: str, array: np.ndarray, seed: int, jitter: bool, split: bool, dtype: torch.dtype) -> Dataset:
    columns = tuple(f"x{i}" for i in range(array.shape[1]))
    chunks = (np.array(array[start : start + CHUNK_ROWS]) for start in range(0, len(array), CHUNK_ROWS))
    extremes = np.concatenate([[chunk.min(axis=0), chunk.max(axis=0)] for chunk in chunks])
    bad = np.array(~np.isfinite(extremes).all(axis=0))
    if bad.any():
        raise InputError(
            f"{name}: {column_checks.flagged(columns, bad)} holds missing or infinite values: drop those rows"
        )
    column_checks.check_range(name, extremes, columns, dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        samples = Split(torch.from_numpy(array), rows=torch.arange(len(array)), dtype=torch.float64)
    train, validation, test = three_splits(samples, seed, split, MAX_HEAD)
    notes: tuple[str, ...] = ()
    if split:
        validation, test = validation.head(), test.head()
        notes = (
            f"{len(array):,} rows stay on disk: {len(test):,} each validate and test; columns are checked in "
            f"{min(len(train), MAX_HEAD):,} others, and rows that occur twice are not looked for",
        )
    raw = Dataset(name, train, validation, test, columns, is_table=True, named=False, notes=notes)
    return _checked(raw, seed, jitter, dtype)
