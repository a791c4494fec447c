"""Forecasts to compare with: last value, linear interpolation, seasonal naive, and ridge autoregression."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.linear_model import RidgeCV

from train_flows.forecasting.forecast_settings import GENERATED
from train_flows.forecasting.series_data import Example, SeriesData, TimeSeries
from train_flows.forecasting.splitting import example

Forecaster = Callable[[TimeSeries, np.ndarray], np.ndarray]  # from a past and times (T,) to values (T, D)

CALIBRATED = 200  # forecasts in the training part that give a baseline its spread, about
MAX_LAGS, POINTS_PER_LAG = 50, 4  # grid points of a series for each lag
MAX_GRID = 100_000  # points of the grid of the training part and of a forecast, at most
ALPHAS = np.logspace(-4, 4, 9)  # penalties of the ridge, in standardised units


def last_value(past: TimeSeries, at: np.ndarray) -> np.ndarray:
    """Return the last value of each feature that was observed before each time; NaN if there is none."""
    found = np.full((len(at), past.values.shape[1]), np.nan)
    for j, (times, values) in enumerate(_observed(past)):
        place = np.searchsorted(times, at, side="right") - 1
        found[place >= 0, j] = values[place[place >= 0]]
    return found


def linear_interpolation(past: TimeSeries, at: np.ndarray) -> np.ndarray:
    """Return values on straight lines between the observations of each feature, constant before and after them."""
    found = np.full((len(at), past.values.shape[1]), np.nan)
    for j, (times, values) in enumerate(_observed(past)):
        if len(times):
            found[:, j] = np.interp(at, times, values)
    return found


def seasonal_naive(period: float) -> Forecaster:
    """Return the forecaster that repeats the last period P of each feature.

        y(t) = y(t - k P)    with the least k for which t - k P is in the past

    Between observations the past is interpolated linearly.
    """

    def forecast(past: TimeSeries, at: np.ndarray) -> np.ndarray:
        found = np.full((len(at), past.values.shape[1]), np.nan)
        for j, (times, values) in enumerate(_observed(past)):
            if len(times):
                seasons = np.maximum(0, np.ceil((at - times[-1]) / period - 1e-9))  # rounding keeps the last phase
                found[:, j] = np.interp(at - seasons * period, times, values)
        return found

    return forecast


def ridge_autoregression(train: Sequence[TimeSeries], step: float | None = None) -> Forecaster | None:
    """Fit a linear autoregression of all features on a regular grid, by ridge regression.

        y_n = sum_k A_k y_(n - k) + b    with the penalty that leave-one-out validation chooses

    Observations are interpolated linearly onto the grid of each series, and forecasts from the grid to other times.

    Args:
        train: series to fit.
        step: of the grid; the median time between observations if omitted.

    Returns:
        The forecaster; None if the series are too short, or the grid would have too many points.
    """
    step = step or float(np.median(np.concatenate([np.diff(series.times) for series in train])))
    if sum(series.span for series in train) > MAX_GRID * step:
        return None
    grids = [_on_grid(series, step) for series in train]
    everything = np.concatenate(grids)
    mean, scale = np.nanmean(everything, axis=0), np.nanstd(everything, axis=0)
    lags = min(MAX_LAGS, int(np.median([len(grid) for grid in grids])) // POINTS_PER_LAG)
    standard = [np.nan_to_num((grid - mean) / scale) for grid in grids]
    if lags < 1:
        return None
    pairs = [_lagged(grid, lags) for grid in standard if len(grid) > lags]
    x, y = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ill-conditioned lags, which the ridge is for
        ridge = RidgeCV(ALPHAS).fit(x, y)
    features = everything.shape[1]

    def forecast(past: TimeSeries, at: np.ndarray) -> np.ndarray:
        known = np.nan_to_num((_on_grid(past, step, lags) - mean) / scale)
        end, count = float(past.times[-1]), int(np.ceil((at[-1] - past.times[-1]) / step - 1e-9))
        if count > MAX_GRID:
            return np.full((len(at), features), np.nan)
        for _ in range(count):
            following = ridge.predict(known[-lags:].reshape(1, -1)).reshape(1, features)
            known = np.concatenate([known, np.clip(following, -10, 10)])  # an unstable one must not overflow
        ahead = known[-1 - count :] * scale + mean
        times = end + step * np.arange(count + 1)
        return np.stack([np.interp(at, times, column) for column in ahead.T], axis=1)

    return forecast


def forecasters(data: SeriesData) -> tuple[dict[str, Forecaster], list[str]]:
    """Return the baselines that suit some data, by name, and notes on those that are left out."""
    found: dict[str, Forecaster] = {"last value": last_value}
    notes = []
    if data.period is None:
        remedy = "" if data.name in GENERATED else ": name its length by --period"
        notes.append(f"no seasonal baseline, since no season is known{remedy}")
    elif any(each.past.span >= data.period for each in data.test):
        found["seasonal naive"] = seasonal_naive(data.period)
    else:
        shown = data.axis.show_duration(data.period)
        notes.append(f"no seasonal baseline: the past is shorter than a season of {shown}")
    autoregression = ridge_autoregression(data.train)
    if autoregression is None:
        notes.append("no autoregression to compare with: its grid would have too many points, or too few")
    else:
        found["ridge autoregression"] = autoregression
    return found, notes


def spread(data: SeriesData, forecaster: Forecaster, inside: bool = False) -> np.ndarray:
    """Return the root mean squared error (D,) of a baseline in the training part, the deviation of its forecasts.

    Args:
        data: the series.
        forecaster: the baseline.
        inside: whether it interpolates.
    """
    rng, each = np.random.default_rng(0), max(1, CALIBRATED // len(data.train))
    longer = data.period if data.period and not inside else 0.0
    squared = []
    for series in data.train[:CALIBRATED]:
        low, high = series.times[0] + max(data.history, longer), series.times[-1] - data.horizon
        if high < low:  # a short series
            low, high = series.times[0] + 0.5 * series.span, series.times[0] + 0.75 * series.span
        for cut in np.linspace(low, high, each):
            if len(series.between(end=cut)) < 2 or not len(series.between(cut, cut + data.horizon)):
                continue
            found = example(series, cut, cut + data.horizon, data.history, 1 - (data.hidden or 0.5) * inside, rng)
            part = found.inside if inside else found.after
            if len(part):
                squared.append((predict(data, forecaster, found, part) - part.values) ** 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a feature without values
        error = np.sqrt(np.nanmean(np.concatenate(squared), axis=0)) if squared else data.scale
    return np.where(error > 0, error, data.scale)


def predict(data: SeriesData, forecaster: Forecaster, of: Example, part: TimeSeries) -> np.ndarray:
    """Return the values (T, D) of a baseline at the times of a part of an example; the mean where it has none."""
    found = forecaster(of.past, part.times)
    return np.where(np.isnan(found), data.mean, found)


def _observed(past: TimeSeries) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return times and values of the observations of each feature."""
    known = ~np.isnan(past.values)
    return [(past.times[known[:, j]], past.values[known[:, j], j]) for j in range(past.values.shape[1])]


def _on_grid(series: TimeSeries, step: float, count: int | None = None) -> np.ndarray:
    """Return values (N, D) at regular times that end with the last one: all of a series, or ``count`` of them."""
    n = int(series.span / step + 1e-9) + 1 if count is None else count
    return linear_interpolation(series, series.times[-1] - step * np.arange(n)[::-1])


def _lagged(grid: np.ndarray, lags: int) -> tuple[np.ndarray, np.ndarray]:
    """Return lags (N, lags D) and the values (N, D) that follow them."""
    windows = np.lib.stride_tricks.sliding_window_view(grid, lags, axis=0)[:-1]  # (N, D, lags)
    return windows.transpose(0, 2, 1).reshape(len(windows), -1), grid[lags:]
