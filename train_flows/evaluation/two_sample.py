"""Compare samples of a table with its rows: column by column, all columns at once, and with the training rows.

Frames hold cells in the units of the table. All figures are plain values, of which each names what is perfect:

- distance of a column: Kolmogorov-Smirnov statistic of numbers, total variation of categories and of missing cells,
  next to the distance that two samples of one distribution exceed by chance in 5% of cases;
- accuracy of a classifier that tells samples from test rows, 0.5 if it cannot;
- share of samples with a cell that its column cannot hold, 0 if the bounds are kept;
- share of samples that are training rows, which should be that of test rows;
- ranks of held-out values among draws of the model, which are uniform if the conditional distributions are right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import ks_2samp, kstest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import NearestNeighbors

from anode import SolverError
from cnf import Density
from cnf.tables import Column
from train_flows.data import Dataset, frames
from train_flows.data.dataset import shuffled
from train_flows.evaluation import to_model
from train_flows.evaluation.ranks import conditional_ranks

Array = np.ndarray
KS_LEVEL = 1.358  # 95% quantile of the Kolmogorov distribution
DRAWS = 500  # of counts, for the total variation by chance
FOLDS = 5
CLASSIFIED = 1000  # samples that the classifier sees, at least, in repeats of at most REPEATS with the same test rows
REPEATS = 10
MAX_CATEGORIES = 254  # of a categorical feature of the classifier
NEIGHBOURS = 2000  # rows whose nearest training row is found, at most
LEVELS = (0.5, 0.8, 0.95)  # of central intervals
MAX_TEST, MAX_TEST_NUMBERS = 5000, 2**18  # rows that are compared, and cells in them
MAX_TRAIN, MAX_TRAIN_NUMBERS = 100_000, 2**23


def measure_table(model: Density, dataset: Dataset, seed: int = 0) -> dict[str, Any]:
    """Return the figures of :func:`judge` for a density of a table on its test part, and of conditional distributions.

    Of larger tables, 5,000 random test rows are compared with 100,000 training rows; fewer of more than 52 columns.
    Columns of a table of real numbers alone hold all real numbers. The global random state does not change.

    Returns:
        The figures, and ``coverage``, those of :func:`coverage` with the ``name`` of each number column, whose ranks
        are those of :func:`~train_flows.evaluation.ranks.conditional_ranks`; none if a solve fails.
    """
    columns = dataset.kinds or _real_columns(dataset)
    order = shuffled(len(dataset.test), seed)[: min(MAX_TEST, MAX_TEST_NUMBERS // len(columns))]
    test = dataset.test.take(order).head()
    train = dataset.train.head(min(MAX_TRAIN, MAX_TRAIN_NUMBERS // len(columns)))
    repeats = max(1, min(REPEATS, CLASSIFIED // len(test)))
    c = None if test.c is None else to_model(model, test.c.repeat(repeats, 1))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        samples = model.sample(repeats * len(test), c).cpu()
        try:
            found = conditional_ranks(model, test, train.x if len(train) else test.x)
        except SolverError:
            found = {}
    drawn, tested, trained = (frames.to_frame(x.double().numpy(), columns) for x in (samples, test.x, train.x))
    of_columns = [{"name": columns[j].name, **coverage(each.cpu().numpy())} for j, each in found.items()]
    return {**judge(drawn, tested, trained if len(trained) else None, columns, seed), "coverage": of_columns}


def _real_columns(dataset: Dataset) -> tuple[Column, ...]:
    """Return the columns of a table of real numbers; those on a grid have noise, without which rows are equal."""
    names = dataset.columns or [f"x{i}" for i in range(dataset.shape.numel())]
    steps: dict[str, Any] = {name: {"step": grid.step, "origin": grid.origin} for name, grid in dataset.grids.items()}
    return tuple(Column(name, **steps.get(name, {})) for name in names)


def judge(
    samples: pd.DataFrame, test: pd.DataFrame, train: pd.DataFrame | None, columns: Sequence[Column], seed: int
) -> dict[str, Any]:
    """Return all figures that need only samples and rows.

    Args:
        samples: of a model, as recorded; with ten samples a test row, the classifier's figure is more certain.
        test: rows that the model has not seen.
        train: rows that the model has seen; None if they are unknown.
        columns: to compare; further columns of the frames are ignored.
        seed: of the folds of the classifier and of subsamples.

    Returns:
        ``samples``, their number; ``columns``, a list of the figures of :func:`column_distance` with the name of the
        column; ``classifier``, the figures of :func:`classifier_test`, and ``classifier_train``, those of training
        rows instead of samples, which a perfect model reaches; ``violations``, those of :func:`violations`;
        ``privacy``, those of :func:`privacy`. Figures that need unknown training rows are None.
    """
    drawn, tested = (to_cells(frame, columns) for frame in (samples, test))
    trained = None if train is None else to_cells(train, columns)
    rng, categories = np.random.default_rng(seed), [column.is_category for column in columns]
    return {
        "samples": len(drawn),
        "columns": [
            {"name": column.name, **column_distance(drawn[:, j], tested[:, j], column.is_category, rng)}
            for j, column in enumerate(columns)
        ],
        "classifier": classifier_test(drawn, tested, categories, seed),
        "classifier_train": None if trained is None else classifier_test(trained, tested, categories, seed),
        "violations": violations(drawn, columns),
        "privacy": None if trained is None else privacy(drawn, tested, trained, columns, rng),
    }


def to_cells(frame: pd.DataFrame, columns: Sequence[Column]) -> Array:
    """Return the cells (N, D) of columns as numbers: values, days, codes of categories; NaN if missing.

    A category that its column does not name has the code -1, so that it can be counted instead of refused.
    """
    return np.stack([_cells(frame[column.name], column) for column in columns], axis=1)


def _cells(series: pd.Series, column: Column) -> Array:
    missing = series.isna().to_numpy()
    if column.is_category:
        codes = {name: float(code) for code, name in enumerate(column.categories)}
        return np.array(
            [math.nan if gap else codes.get(_name(x), -1.0) for x, gap in zip(series, missing, strict=True)]
        )
    if column.kind == "date" and not pd.api.types.is_numeric_dtype(series):
        return ((pd.to_datetime(series) - pd.Timestamp(column.first)) / pd.Timedelta(days=1)).to_numpy(float)
    return pd.to_numeric(series).to_numpy(float, na_value=math.nan)


def _name(x: Any) -> str:
    """Return the text of a cell, of a whole number without a point, since gaps turn integers into floats."""
    return str(int(x)) if isinstance(x, float) and x.is_integer() else str(x)


def column_distance(samples: Array, rows: Array, is_category: bool, rng: np.random.Generator) -> dict[str, Any]:
    """Measure the distance between cells of samples (N,) and of rows (M,).

    Returns:
        ``measure``, "KS" or "TV"; ``distance`` between the cells that are not missing, None without any on one side;
        ``missing``, the difference of the shares of missing cells; ``chance`` and ``missing_chance``, which two samples
        of one distribution exceed in 5% of cases (an upper bound for numbers with ties).
    """
    gaps = [np.isnan(x) for x in (samples, rows)]
    shares, missing_chance = _total_variation(*gaps, rng)
    samples, rows = (x[~gap] for x, gap in zip((samples, rows), gaps, strict=True))
    distance, chance = None, None
    if len(samples) and len(rows):
        if is_category:
            distance, chance = _total_variation(samples, rows, rng)
        else:
            distance = float(ks_2samp(samples, rows, method="asymp").statistic)
            chance = KS_LEVEL * math.sqrt(1 / len(samples) + 1 / len(rows))
    return {
        "measure": "TV" if is_category else "KS",
        "distance": distance,
        "chance": chance,
        "missing": shares,
        "missing_chance": missing_chance,
    }


def _total_variation(a: Array, b: Array, rng: np.random.Generator) -> tuple[float, float]:
    """Return half the sum of differences of shares, and what two samples of the pooled shares exceed in 5% of cases."""
    values, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    counts = [np.bincount(part, minlength=len(values)) for part in (codes[: len(a)], codes[len(a) :])]
    pooled = sum(counts) / len(codes)
    drawn = [rng.multinomial(len(x), pooled, DRAWS) / len(x) for x in (a, b)]
    distance = 0.5 * np.abs(counts[0] / len(a) - counts[1] / len(b)).sum()
    return float(distance), float(np.quantile(0.5 * np.abs(drawn[0] - drawn[1]).sum(axis=1), 0.95))


def classifier_test(samples: Array, rows: Array, is_category: Sequence[bool], seed: int) -> dict[str, Any]:
    """Measure how well gradient-boosted trees tell samples (N, D) from rows (M, D), both in numbers with NaN.

    Every repeat takes M other samples and finds the accuracy by cross-validation in five folds. All repeats share the
    rows, so that for the standard error the mean accuracy of a row over the repeats counts once; it leaves out that
    rows of one fold are judged by the same trees.

    The figure can miss differences, and is certain only where it is well above 0.5. In few rows the trees find little:
    35 rows have a standard error of 0.06, and of 0.03 with ten repeats. A copy of the training rows is at 0.5, too,
    which :func:`privacy` shows.

    Returns:
        ``accuracy`` with ``standard_error``; ``rows``, their number M; ``repeats``.

    References:
        Lopez-Paz, Oquab 2017, Revisiting classifier two-sample tests, arXiv 1610.06545.
    """
    rng = np.random.default_rng(seed)
    count = min(len(samples), len(rows))
    if count < 2 * FOLDS:
        return {"accuracy": None, "standard_error": None, "rows": count, "repeats": 0}
    repeats = max(1, min(REPEATS, math.ceil(CLASSIFIED / count), len(samples) // count))
    rows = rows[np.sort(rng.permutation(len(rows))[:count])]
    order, y = rng.permutation(len(samples)), np.repeat([0, 1], count)
    categories = [j for j, known in enumerate(is_category) if known and _fits(samples[:, j], rows[:, j])]
    right = []
    for repeat in range(repeats):
        x = np.concatenate([rows, samples[order[repeat * count : (repeat + 1) * count]]])
        x[:, categories] = np.where(x[:, categories] < 0, math.nan, x[:, categories])
        found = np.zeros(2 * count, dtype=bool)
        for learn, hold in StratifiedKFold(FOLDS, shuffle=True, random_state=seed + repeat).split(x, y):
            trees = HistGradientBoostingClassifier(
                categorical_features=categories or None,
                min_samples_leaf=min(20, max(5, count // 10)),
                early_stopping=False,
                random_state=seed,
            )
            found[hold] = trees.fit(x[learn], y[learn]).predict(x[hold]) == y[hold]
        right.append(found)
    of_rows, of_samples = np.mean(right, axis=0)[:count], np.ravel([found[count:] for found in right])
    variance = of_rows.var(ddof=1) / len(of_rows) + of_samples.var(ddof=1) / len(of_samples)
    return {
        "accuracy": float((of_rows.mean() + of_samples.mean()) / 2),
        "standard_error": float(math.sqrt(variance) / 2),
        "rows": count,
        "repeats": repeats,
    }


def _fits(*sets: Array) -> bool:
    return max((np.nanmax(x, initial=0) for x in sets), default=0) < MAX_CATEGORIES


def violations(samples: Array, columns: Sequence[Column]) -> dict[str, Any]:
    """Count samples (N, D) with a cell that its column cannot hold.

    Such a cell is out of bounds, not finite, of an unknown category, or missing in a column without gaps.

    Returns:
        ``share`` of samples with such a cell; ``columns``, names of columns with such cells to their shares.
    """
    wrong = np.stack([_violates(samples[:, j], column) for j, column in enumerate(columns)], axis=1)
    shares = {column.name: float(share) for column, share in zip(columns, wrong.mean(axis=0), strict=True) if share}
    return {"share": float(wrong.any(axis=1).mean()), "columns": shares}


def _violates(x: Array, column: Column) -> Array:
    missing = np.isnan(x)
    if column.is_category:
        return np.where(missing, not column.gaps, x < 0)
    low, high = (-math.inf if column.low is None else column.low), (math.inf if column.high is None else column.high)
    inside = (np.isfinite(x) & (x >= low) & (x <= high)) | np.isin(x, column.atoms)
    return np.where(missing, not column.gaps, ~inside)


def privacy(
    samples: Array, test: Array, train: Array, columns: Sequence[Column], rng: np.random.Generator
) -> dict[str, Any]:
    """Measure how many samples (N, D) are training rows or lie next to one, compared with test rows.

    Numbers are equal if they are recorded as the same value, or as the same one in single precision without a step.
    Distances are Euclidean after numbers are replaced by their quantiles among training rows; two different categories,
    or a missing cell and one that is not, are 1 apart.

    Returns:
        ``duplicates``, the share of samples that are training rows; ``test_duplicates``, that of test rows;
        ``distance_ratio``, the mean distance of samples to the nearest training row over that of test rows: about 1;
        about 0 for a model that memorises, and far above 1 for one whose samples lie far from the rows; None if all
        test rows are training rows.
    """
    known = set(_keys(train, columns))
    shares = [float(np.mean([key in known for key in _keys(x, columns)])) for x in (samples, test)]
    few = [x[rng.permutation(len(x))[:NEIGHBOURS]] for x in (samples, test)]
    near = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(_coordinates(train, train, columns))
    distances = [near.kneighbors(_coordinates(x, train, columns))[0].mean() for x in few]
    ratio = float(distances[0] / distances[1]) if distances[1] > 0 else None
    return {"duplicates": shares[0], "test_duplicates": shares[1], "distance_ratio": ratio}


def _keys(x: Array, columns: Sequence[Column]) -> list[bytes]:
    """Return one key of each row, equal for rows that are recorded alike."""
    x = x.astype(np.float64, copy=True)
    for j, column in enumerate(columns):
        if column.step:
            x[:, j] = np.round((x[:, j] - column.origin) / column.step)
    x = x.astype(np.float32) + np.float32(0)  # no negative zero
    x[np.isnan(x)] = np.nan  # one NaN
    return [row.tobytes() for row in x]


def _coordinates(x: Array, train: Array, columns: Sequence[Column]) -> Array:
    """Return rows in the unit in which distances are measured, (N, number of coordinates)."""
    parts: list[Array] = []
    for j, column in enumerate(columns):
        cells, known = x[:, j], train[~np.isnan(train[:, j]), j]
        missing = np.isnan(cells)
        if column.is_category:
            codes = np.where(missing, len(column.categories), cells)
            parts += [(codes == code) / math.sqrt(2) for code in (-1, *range(column.states))]
            continue
        if len(known):
            values, counts = np.unique(known, return_counts=True)
            parts.append(np.where(missing, 0.5, np.interp(cells, values, (counts.cumsum() - counts / 2) / len(known))))
        parts.append(missing.astype(float))
    return np.stack(parts, axis=1)


def coverage(ranks: Array) -> dict[str, Any]:
    """Measure how far ranks (N,) in [0, 1] are from uniform: of held-out values among draws given the other columns.

    A rank is the conditional distribution function at the value; with ties, a uniform number between its limits. NaN,
    as for a missing value, is left out. A model that is too sure has ranks near 0 and 1, and shares below the levels.

    Returns:
        ``ks``, the Kolmogorov-Smirnov distance from the uniform distribution, and ``chance``, which uniform ranks
        exceed in 5% of cases; ``within``, for central intervals of 50%, 80% and 95%, the ``share`` of values in them
        and the ``standard_error`` that it has if the level is right; ``values``, the number N; None without values.
    """
    ranks = ranks[~np.isnan(ranks)]
    count = len(ranks)
    within = {
        f"{level:.0%}": {
            "share": float((np.abs(ranks - 0.5) <= level / 2).mean()) if count else None,
            "standard_error": math.sqrt(level * (1 - level) / count) if count else None,
        }
        for level in LEVELS
    }
    ks, chance = (float(kstest(ranks, "uniform").statistic), KS_LEVEL / math.sqrt(count)) if count else (None, None)
    return {"values": count, "ks": ks, "chance": chance, "within": within}
