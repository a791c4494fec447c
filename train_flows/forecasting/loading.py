"""Series of a run: those it is trained on, and the same features of other data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anode import InputError
from train_flows.forecasting import series_tables
from train_flows.forecasting.comparison import joined
from train_flows.forecasting.forecast_settings import GENERATED, ForecastSettings
from train_flows.forecasting.generated import generate
from train_flows.forecasting.series_data import SeriesData, TimeSeries
from train_flows.forecasting.splitting import Split, split_series
from train_flows.forecasting.time_axis import TimeAxis

YEAR = 365.25  # the season of dates, unless --period names another


def load_series(settings: ForecastSettings) -> SeriesData:
    """Read or generate the series of a run, and split them."""
    typed, source = settings.data, settings.data.source or ""
    if source in GENERATED:
        return generate(source, _split(settings, TimeAxis()))
    axis, columns, series, notes = series_tables.read_series(
        source, typed.time, typed.series, typed.target, typed.first_is_day, typed.date_format
    )
    seasons = [axis.duration("--period", text) for text in typed.period]
    season = max(seasons, default=YEAR if axis.origin else None)
    return split_series(Path(source).name, axis, columns, series, _split(settings, axis), season, notes)


def _split(settings: ForecastSettings, axis: TimeAxis) -> Split:
    typed = settings.data
    return Split(
        cut=None if typed.split is None else axis.point("--split", typed.split),
        horizon=None if typed.horizon is None else axis.duration("--horizon", typed.horizon),
        history=None if typed.history is None else axis.duration("--history", typed.history),
        test_series=typed.test_series,
        observed=typed.observed,
        seed=settings.run.seed,
    )


def load_run_series(settings: ForecastSettings, config: Mapping[str, Any], folder: object) -> SeriesData:
    """Read the series of a run again, which must be those that it was trained on."""
    data = load_series(settings)
    if data.digest() != config["data"]["sha256"]:
        raise InputError(
            f"{data.name} has changed since {folder} was trained on it, so its test part is unknown: name the data to "
            "evaluate on"
        )
    return data


def load_other_series(source: str, settings: ForecastSettings, config: Mapping[str, Any]) -> SeriesData:
    """Read other series with the features of a run, and hold out the end of each, as long as the run's forecasts."""
    about = config["data"]
    axis, series, notes = _read_like(source, settings, about)
    split = Split(horizon=about["horizon"], history=about["history"], observed=settings.data.observed)
    return split_series(Path(source).name, axis, about["columns"], series, split, about["period"], notes)


def whole_series(settings: ForecastSettings, config: Mapping[str, Any]) -> tuple[TimeAxis, list[TimeSeries]]:
    """Return all observations of the series of a run; of generated ones, those of the test part."""
    if settings.data.source in GENERATED:
        data = load_series(settings)
        return data.axis, [joined(each.past, each.after) for each in data.test]
    axis, series, _ = _read_like(settings.data.source or "", settings, config["data"])
    return axis, series


def _read_like(
    source: str, settings: ForecastSettings, about: Mapping[str, Any]
) -> tuple[TimeAxis, list[TimeSeries], list[str]]:
    """Read the features of a run from a table, with times since the origin of the run."""
    typed, wanted = settings.data, TimeAxis(**about["axis"])
    order = typed.first_is_day if wanted.day_first is None else wanted.day_first
    axis, _, series, notes = series_tables.read_series(
        source, typed.time, typed.series, about["columns"], order, typed.date_format
    )
    if (axis.origin is None) != (wanted.origin is None):
        kinds = ("numbers", "dates") if wanted.origin else ("dates", "numbers")
        raise InputError(f"{source} has {kinds[0]} in column {axis.name}, the run has {kinds[1]}: convert them")
    if axis.origin and wanted.origin:
        shift = (np.datetime64(axis.origin) - np.datetime64(wanted.origin)).astype(float)
        series = [replace(one, times=one.times + shift) for one in series]
    return wanted, series, notes
