"""Splits of series: the ends of all series, or whole series, are held out for validation and testing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from anode import InputError
from train_flows.data.dataset import SEED_STRIDE, abbreviate
from train_flows.forecasting.series_data import Example, SeriesData, TimeSeries
from train_flows.forecasting.time_axis import TimeAxis

VALIDATION_SHARE, MAX_VALIDATION_SHARE = 0.1, 1 / 3  # of the training part; the latter if a horizon is as long
VALIDATION_FORECASTS = 20  # of each series, at most
DEFAULT_SHARE = 0.2  # of the longest series, as horizon
MIN_SERIES = 3  # for a split into three parts


@dataclass(frozen=True)
class Split:
    """How to hold out parts of series.

    Attributes:
        cut: time after which every series is held out; None to hold out a horizon.
        horizon: length of the end of every series that is held out; a fifth of the longest series by default.
        history: length of the histories of forecasts; the horizon, or all of the past of held-out series, by default.
        test_series: share of the series that are held out as a whole.
        observed: share of the observations of a history that the model sees.
        hide: whether training hides the others, too; False for series that were thinned before.
        seed: of the series held out and of the observations seen.
    """

    cut: float | None = None
    horizon: float | None = None
    history: float | None = None
    test_series: float = 0.0
    observed: float = 1.0
    hide: bool = True
    seed: int = 0


def split_series(
    name: str,
    axis: TimeAxis,
    columns: Sequence[str],
    series: Sequence[TimeSeries],
    split: Split,
    period: float | None = None,
    notes: Iterable[str] = (),
) -> SeriesData:
    """Split series into those to learn from, and forecasts for validation and for testing.

    With ``test_series``, whole series validate and test: each is forecast over its last horizon from what is before.
    Otherwise the end of each series tests and the part before trains. The last tenth of that part validates, or one
    horizon if it is longer; nothing of a series if a horizon is more than a third of its part.

    Args:
        name: of the data.
        axis: meaning of the times.
        columns: names of the features.
        series: at least one.
        split: how to hold out.
        period: length of a season, or None.
        notes: sentences about how the series were read.

    Raises:
        InputError: if a part is too short, or a feature is constant or missing in the training part.
    """
    notes = list(notes)
    if max(map(len, series)) < 3:
        raise InputError(f"{name} lacks a series of 3 observations, two of a history and one to forecast: add rows")
    if split.horizon is None and split.cut is None:
        split = dataclasses.replace(split, horizon=DEFAULT_SHARE * max(one.span for one in series))
        part = axis.show_duration(split.horizon or 0)
        notes.append(f"the last {part} of each series are held out; --horizon or --split sets another length")
    rng = np.random.default_rng(SEED_STRIDE * split.seed)
    hold_out = _hold_out_series if split.test_series else _hold_out_ends
    train, validation, test, history, horizon = hold_out(name, axis, series, split, rng, notes)
    _check_features(name, columns, train)
    hidden = 1 - split.observed if split.hide else 0.0
    return SeriesData(
        name, axis, tuple(columns), train, validation, test, history, horizon, hidden, period, tuple(notes)
    )


Parts = tuple[tuple[TimeSeries, ...], tuple[Example, ...], tuple[Example, ...], float, float]


def _hold_out_series(
    name: str,
    axis: TimeAxis,
    series: Sequence[TimeSeries],
    split: Split,
    rng: np.random.Generator,
    notes: list[str],
) -> Parts:
    """Hold out whole series, of which a tenth validates."""
    if len(series) < MIN_SERIES:
        raise InputError(
            f"{name} has {len(series)} series, too few for --test-series {split.test_series:g}: hold out the end of "
            "each by --horizon, or name the column of the series by --series"
        )
    n_test = max(1, round(split.test_series * len(series)))
    n_validation = max(1, round(VALIDATION_SHARE * (len(series) - n_test)))
    if len(series) - n_test - n_validation < 1:
        raise InputError(f"--test-series {split.test_series:g} leaves no series to train on: lower it")
    order = rng.permutation(len(series))
    cuts = {i: _cut(series[i], split) for i in order}
    held_out = [i for i in order[: n_test + n_validation] if _has_both(series[i], cuts[i])]
    if len(held_out) < 2:
        raise InputError(f"{name}: no held-out series has observations before and after {_where(axis, split)}")
    rest = set(held_out)
    train = tuple(series[i] for i in order if i not in rest)
    horizon = max(float(series[i].times[-1]) - cuts[i] for i in held_out)
    history = split.history or max(cuts[i] - float(series[i].times[0]) for i in held_out)
    examples = [example(series[i], cuts[i], np.inf, history, split.observed, rng) for i in held_out]
    n_validation = min(n_validation, len(examples) - 1)
    return train, tuple(examples[:n_validation]), tuple(examples[n_validation:]), history, horizon


def _hold_out_ends(
    name: str,
    axis: TimeAxis,
    series: Sequence[TimeSeries],
    split: Split,
    rng: np.random.Generator,
    notes: list[str],
) -> Parts:
    """Hold out the end of each series."""
    parts, examples, left_out = [], [], []
    cuts = [_cut(one, split) for one in series]
    tested = [(one, cut) for one, cut in zip(series, cuts, strict=True) if one.times[-1] > cut]
    if not tested:
        last = axis.show(max(float(one.times[-1]) for one in series))
        raise InputError(f"--split {axis.show(cuts[0])} leaves nothing to forecast: the last time of {name} is {last}")
    horizon = max(float(one.times[-1]) - cut for one, cut in tested)
    history = split.history or horizon
    for one, cut in zip(series, cuts, strict=True):
        before = one.between(end=cut)
        if len(before) < 2:
            left_out.append(one)
            continue
        parts.append(before)
        if one.times[-1] > cut:
            examples.append(example(one, cut, np.inf, history, split.observed, rng))
    if not examples:
        first = min(series, key=lambda one: float(one.times[0]))
        raise InputError(
            f"{_where(axis, split)} is before the end of the history: {name} has fewer than 2 observations before it, "
            f"the first at {axis.show(float(first.times[0]))}; forecast a shorter end, or add rows"
        )
    if left_out:
        notes.append(
            f"{len(left_out)} of {len(series)} series are left out, with fewer than 2 observations before "
            f"{_where(axis, split)}: {abbreviate([one.name for one in left_out])}"
        )
    span = max(one.span for one in parts)
    tail = max(VALIDATION_SHARE * span, horizon)
    train, validation = [], []
    for one in parts:
        end = float(one.times[-1])
        earlier = one.between(end=end - tail)
        if tail > MAX_VALIDATION_SHARE * one.span or len(earlier) < 2:  # a short series trains as a whole
            train.append(one)
            continue
        train.append(earlier)
        starts = np.linspace(end - tail, end - horizon, min(VALIDATION_FORECASTS, 1 + int(2 * (tail / horizon - 1))))
        for start in starts:
            if _has_both(one, start) and len(one.between(start, start + horizon)):
                validation.append(example(one, start, start + horizon, history, split.observed, rng))
    if not validation:
        notes.append("the training part is too short to validate on: the weights of the last step are kept")
    return tuple(train), tuple(validation), tuple(examples), history, horizon


def example(
    series: TimeSeries, cut: float, end: float, history: float, observed: float, rng: np.random.Generator
) -> Example:
    """Return the forecast of a series after a cut, until ``end``, from the history before.

    Args:
        series: with at least 2 observations until the cut and one after it.
        cut: last time of the history.
        end: last time to forecast.
        history: its length; it has two observations at least.
        observed: share of its observations that the model sees, at random; always the first.
        rng: draws them.
    """
    past = series.between(end=cut)
    start = min(int(np.searchsorted(past.times, past.times[-1] - history)), len(past) - 2)
    whole = past.take(slice(start, None))
    seen = draw_seen(len(whole), observed, rng)
    kept = np.concatenate([np.ones(start, dtype=bool), seen])
    return Example(whole.take(seen), past.take(kept), whole.take(~seen), series.between(cut, end))


def draw_seen(n: int, observed: float, rng: np.random.Generator) -> np.ndarray:
    """Return flags (n,) of the observations of a history that a model sees: a share of them, with the first."""
    count = min(n, max(2, round(observed * n)))
    seen = np.zeros(n, dtype=bool)
    seen[0] = True
    seen[1 + rng.permutation(n - 1)[: count - 1]] = True
    return seen


def _cut(series: TimeSeries, split: Split) -> float:
    return split.cut if split.cut is not None else float(series.times[-1]) - (split.horizon or 0)


def _has_both(series: TimeSeries, cut: float) -> bool:
    """Return True for a series with a history of 2 observations before a cut, and something to forecast after it."""
    return len(series.between(end=cut)) >= 2 and series.times[-1] > cut


def _where(axis: TimeAxis, split: Split) -> str:
    if split.cut is not None:
        return f"--split {axis.show(split.cut)}"
    return f"--horizon {axis.show_duration(split.horizon or 0)}"


def _check_features(name: str, columns: Sequence[str], train: Sequence[TimeSeries]) -> None:
    """Raise an error for features that are constant or missing in the training part."""
    values = np.concatenate([series.values for series in train])
    for column, feature in zip(columns, values.T, strict=True):
        known = feature[~np.isnan(feature)]
        if len(known) == 0:
            raise InputError(f"{name}: all values of column {column} are missing in the training part: leave it out")
        if np.ptp(known) == 0:
            raise InputError(
                f"{name}: column {column} is constant in the training part ({known[0]:g}): leave it out, by --target "
                "with the other columns"
            )
