"""Figures of continuous-time models: spirals, sinusoids, the weather of a city, and sea ice.

Runs are those of ``train-flows forecast``. The tables of the weather are made of the two files of *Daily Delhi
Climate*, which are expected under the data root, as is the extent of sea ice by day.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anode import InputError, storage
from anode.storage import written_atomically
from train_flows.data.frames import parse_dates
from train_flows.experiments.grid import Experiment, Scale, words
from train_flows.experiments.panels import Panel, against, draw_panels
from train_flows.experiments.results import Outcome, Results, spread
from train_flows.figures import of_series, series_plots
from train_flows.figures.plots import LINE_COLORS
from train_flows.forecasting.forecast_settings import ForecastSettings
from train_flows.forecasting.loading import load_run_series
from train_flows.forecasting.series_data import SeriesData
from train_flows.settings import from_config

Models = Mapping[str, Mapping[str, Any]]  # options by name
Label = Callable[[str, int], str]  # of a model by name and percent
QUICK = {"steps": 4, "validate_every": 2, "horizon_warm_up": 0, "batch_size": 4, "hidden": (8,)}
TRUTH, ERROR, CRPS, COVERAGE = (
    f"extrapolation {score}" for score in ("rmse_truth", "mse", "crps", "coverage_90")
)  # of the model, see results.Outcome


def forecast(scale: Scale, **options: Any) -> str:
    """Return the command line that trains a model of series, from options other than those of its recipe."""
    return words("forecast {data}", options | (QUICK if scale.size == "quick" else {}))


def by_label(results: Results, name: str, metric: str) -> dict[str, Any]:
    """Return mean and deviation of a figure over the seeds of each label, with its name before the label's."""
    found = {label: results.of(label).last(metric) for label in results.labels}
    return {f"{name}, {label}": spread(values) for label, values in found.items() if len(values)}


def _thinned(scale: Scale, models: Models, label: Label, percents: Sequence[int]) -> dict[str, str]:
    """Return the command lines of models that see some percent of the observations."""
    return {
        label(name, percent): forecast(scale, **options, observed=percent / 100)
        for name, options in models.items()
        for percent in percents
    }


def _draw_thinned(
    axes: Axes, results: Results, models: Models, label: Label, percents: Sequence[int], metric: str
) -> None:
    """Draw a point for each run by the percent of observations seen."""
    for name, color in zip(models, LINE_COLORS, strict=False):
        points = [(percent, y) for percent in percents for y in results.of(label(name, percent)).last(metric)]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=color, alpha=0.7, label=name)


# Spirals

OBSERVED = (30, 50, 100)  # of 100 points
PUBLISHED = {"latent ODE": (0.1642, 0.1502, 0.1346), "RNN": (0.3937, 0.3202, 0.1813)}  # Chen et al. 2018, table 2
SPIRAL_MODELS = {"node": {"kind": "node"}, "latent": {"kind": "latent"}}


def of_points(kind: str, count: int) -> str:
    """Return the label of a model that sees some of 100 points."""
    return f"{kind}, {count} of 100"


def _spiral_findings(results: Results) -> dict[str, Any]:
    found = by_label(results, "RMSE of the truth", TRUTH)
    for name, errors in PUBLISHED.items():
        found |= {f"published: {of_points(name, n)}": error for n, error in zip(OBSERVED, errors, strict=True)}
    return found


def _draw_spiral_errors(axes: Axes, results: Results) -> None:
    _draw_thinned(axes, results, SPIRAL_MODELS, of_points, OBSERVED, TRUTH)
    for (name, values), style in zip(PUBLISHED.items(), ("--", ":"), strict=True):
        axes.plot(OBSERVED, values, f"k{style}", lw=1, label=f"{name}, published")
    axes.set(xlabel="observations of 100", ylabel="RMSE of the next 100 points", ylim=(0, None), xticks=OBSERVED)


# Sinusoids

SHARES = (10, 20, 30, 50)  # percent of the observations of a history
SINE_MODELS = {"anode": {"kind": "anode"}, "second-order": {"kind": "second-order"}}
SINES_PUBLISHED = (0.0531, 0.0443, 0.0357, 0.0139)  # MSE of the extrapolation by a latent ODE, Rubanova et al. 2019


def of_share(kind: str, share: int) -> str:
    """Return the label of a model that sees a share of a history."""
    return f"{kind}, {share}%"


def _sine_findings(results: Results) -> dict[str, Any]:
    found = by_label(results, "MSE of the extrapolation", ERROR)
    found |= by_label(results, "MSE of the interpolation", "interpolation mse")
    return found | {
        f"published: MSE of the extrapolation, latent ODE, {share}%": error
        for share, error in zip(SHARES, SINES_PUBLISHED, strict=True)
    }


def _draw_sine_errors(axes: Axes, results: Results) -> None:
    _draw_thinned(axes, results, SINE_MODELS, of_share, SHARES, ERROR)
    axes.plot(SHARES, SINES_PUBLISHED, "k--", lw=1, label="latent ODE, published")
    axes.set(xlabel="percent of the observations", ylabel="MSE of the extrapolation", yscale="log", xticks=SHARES)


# The weather of a city

DAILY, MONTHLY = "delhi-days", "delhi-months"
TRAINED = "2014-08-31"  # end of the 20 months to learn from
CLIMATE = ("meantemp", "humidity", "wind_speed")
PLAIN, ONE, TWO, SECOND = "plain", "anode p=1", "anode p=2", "second-order"


def weather_table(name: str, scale: Scale, folder: Path) -> str:
    """Write a table of the two files of the weather, by day or with the means of months, and return its path.

    Raises:
        InputError: if a file is missing.
    """
    parts = []
    for name_of_part in ("Train", "Test"):
        path = Path(scale.data_root, f"DailyDelhiClimate{name_of_part}.csv")
        if not path.is_file():
            raise InputError(f"{path} is missing: pass the folder of Daily Delhi Climate as --data-root")
        part = pd.read_csv(path)
        part.index = pd.DatetimeIndex(parse_dates(part.pop("date"), True)[0])
        parts.append(part)
    days = pd.concat(parts)
    days = days[~days.index.duplicated(keep="last")]  # the last day of the first file is the first of the second
    table = days if name == DAILY else days.resample("MS").mean()
    path = folder / f"{name}.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as file:
        table.to_csv(file, index_label="date")
    return str(path.absolute())


def _climate(scale: Scale) -> dict[str, str]:
    common = {"time": "date", "target": CLIMATE, "split": TRAINED, "start_noise": 0.5, "weight_decay": 1e-3}
    common |= {"horizon_warm_up": 1000, "lr": 0.02, "ema": 0.99}
    models = {  # of fields with 159 to 166 parameters
        PLAIN: {"kind": "node", "hidden": (23,)},
        ONE: {"kind": "anode", "extra": 1, "hidden": (18,)},
        TWO: {"kind": "anode", "extra": 2, "hidden": (14,)},
        SECOND: {"kind": "second-order", "hidden": (15,)},
    }
    return {label: forecast(scale, **options, **common) for label, options in models.items()}


def _climate_findings(results: Results) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if results.exemplar is not None:
        data = _data(results.exemplar)
        for name, predicted in climatologies(data).items():
            errors = (predicted - data.test[0].after.values) / data.scale
            found[f"MSE, {name}"] = float(np.square(errors).mean())
    found |= by_label(results, "MSE", ERROR)
    for label in results.labels:
        if label != PLAIN:
            found[f"MSE, {label} / {PLAIN}"] = results.ratio(label, PLAIN, ERROR)
            found[f"NFE at equal training loss, {label} / {PLAIN}"] = at_equal_loss(results, label)
    return found


def climatologies(data: SeriesData) -> dict[str, np.ndarray]:
    """Return forecasts (T, D) that know the calendar: the mean of the same month of the training part; and its mean."""
    train, after = data.train[0], data.test[0].after
    months, wanted = (_months(data, part.times) for part in (train, after))
    same = np.stack([train.values[months == month].mean(0) for month in wanted])
    return {"same month of the training part": same, "mean of the training part": np.tile(data.mean, (len(same), 1))}


def _months(data: SeriesData, times: np.ndarray) -> np.ndarray:
    return pd.DatetimeIndex(data.axis.dates(times)).month.to_numpy()


def at_equal_loss(results: Results, label: str) -> float:
    """Return the evaluations of a solve over those of the plain field, the mean over seeds.

    They are compared at the lowest loss that both reach in the second half of training, after the warm-up.
    """
    ratios = []
    for pair in zip(*results.shared(label, PLAIN), strict=True):
        halves = [outcome.records[len(outcome.records) // 2 :] for outcome in pair]
        level = max(min(record["loss"] for record in half) for half in halves)
        above, below = (next(r["nfe_forward"] for r in half if r["loss"] <= level) for half in halves)
        ratios.append(above / below)
    return float(np.mean(ratios)) if ratios else math.nan


def _weather(scale: Scale) -> dict[str, str]:
    window = {"time": "date", "split": "2016-12-31", "history": "60d", "period": "1y"}
    training = {"steps": 500, "ema": 0.99, "start_noise": 0.3}
    return {kind: forecast(scale, kind=kind, **window, **training) for kind in ("node", "anode")}


def _weather_findings(results: Results) -> dict[str, Any]:
    """Return the CRPS of forecasts and of the baselines, and the coverage of the intervals."""
    found = by_label(results, "CRPS", CRPS) | by_label(results, "coverage of 90% intervals", COVERAGE)
    last = {} if results.exemplar is None else results.exemplar.records[-1]
    for name in (name for name in last if name.startswith(f"{CRPS} of")):
        baseline = name.removeprefix(f"{CRPS} of ")
        found[f"CRPS, {baseline}"] = results.mean(name)
        ratios = {label: results.of(label).last(CRPS) / results.of(label).last(name) for label in results.labels}
        found |= {f"CRPS, {label} / {baseline}": spread(values) for label, values in ratios.items() if len(values)}
    return found


# Sea ice


def _sea_ice(scale: Scale) -> dict[str, str]:
    window = {"time": "Date", "horizon": "5y", "history": "3y", "observed": 0.2, "period": "1y"}
    training = {"batch_size": 16, "steps": 1500, "ema": 0.99, "noise_from": "state"}
    return {kind: forecast(scale, kind=kind, **window, **training) for kind in ("node", "anode")}


# Figures


def _data(outcome: Outcome) -> SeriesData:
    """Read the series of a run again."""
    config = storage.read_config(outcome.folder)
    return load_run_series(from_config(ForecastSettings, outcome.folder, config), config, outcome.folder)


def _bands(label: str, feature: int) -> Panel:
    """Return a panel with the forecast of a feature of the first test series."""

    def draw(axes: Axes, results: Results) -> None:
        if (outcome := results.of(label).exemplar) is not None:
            data = _data(outcome)
            each = data.test[0]
            panels = of_series.feature_bands(data, each, of_series.drawn_quantiles(outcome.model, each))
            series_plots.draw_bands(axes, panels[feature])
            axes.set(title=f"{label}, {data.columns[feature]}")

    return draw


def _plane(label: str) -> Panel:
    """Return a panel with the forecasts of the first two features of a test series against each other."""

    def draw(axes: Axes, results: Results) -> None:
        if (outcome := results.of(label).exemplar) is not None:
            data = _data(outcome)
            each = data.test[0]
            series_plots.draw_path(axes, of_series.plane_path(each, of_series.drawn_quantiles(outcome.model, each)))
            axes.set(title=label, xlabel=data.columns[0], ylabel=data.columns[1])

    return draw


def _draw_forecasts(results: Results, *panels: Panel) -> Figure:
    """Draw panels, with one legend for all forecasts."""
    figure = draw_panels(results, *panels)
    drawn = [(axes, *axes.get_legend_handles_labels()) for axes in figure.axes]
    forecasts = [(axes, handles, names) for axes, handles, names in drawn if "held out" in names]
    for axes, _, _ in forecasts:
        if legend := axes.get_legend():
            legend.remove()
    if forecasts:
        _, handles, names = max(forecasts, key=lambda one: len(one[2]))
        figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    return figure


def _draw_climate(results: Results) -> Figure:
    of_models = [panel for label in results.labels for panel in (*(_bands(label, i) for i in range(3)), _plane(label))]
    return _draw_forecasts(results, *of_models, against("step", "loss"), against("step", "nfe_forward"))


EXPERIMENTS = {
    "spirals": Experiment(
        "the next 100 points of spirals from 30, 50 or 100 noisy ones (Neural ODEs, table 2 and fig. 8)",
        ("spirals",),
        "series",
        lambda data, scale: _thinned(scale, SPIRAL_MODELS, of_points, OBSERVED),
        lambda r: _draw_forecasts(r, _draw_spiral_errors, *(_plane(of_points("node", count)) for count in OBSERVED)),
        _spiral_findings,
    ),
    "periodic": Experiment(
        "interpolation and extrapolation of sinusoids from few points (Latent ODEs, section 4.1)",
        ("sines",),
        "series",
        lambda data, scale: _thinned(scale, SINE_MODELS, of_share, SHARES),
        lambda r: _draw_forecasts(
            r, _draw_sine_errors, *(_bands(label, 0) for label in r.labels if label.startswith("anode"))
        ),
        _sine_findings,
    ),
    "climate": Experiment(
        "32 months of a climate from 20, by plain, augmented and second-order fields without a calendar",
        (MONTHLY,),
        "series",
        lambda data, scale: _climate(scale),
        _draw_climate,
        _climate_findings,
        source=weather_table,
    ),
    "weather": Experiment(
        "114 days of weather from 60, beside simple forecasts",
        (DAILY,),
        "series",
        lambda data, scale: _weather(scale),
        lambda r: _draw_forecasts(r, *(_bands(label, i) for label in r.labels for i in range(4))),
        _weather_findings,
        source=weather_table,
    ),
    "seaice": Experiment(
        "five years of the extent of sea ice, observed at irregular days",
        ("seaice.csv.gz",),
        "series",
        lambda data, scale: _sea_ice(scale),
        lambda r: _draw_forecasts(r, *(_bands(label, 0) for label in r.labels), against("step", "nll")),
        _weather_findings,
    ),
}
