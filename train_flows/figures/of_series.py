"""Pictures of a run of series: curves of training, forecasts with bands, and paths of states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from anode.time_series import SeriesModel
from train_flows.figures import of_runs, plots, series_plots
from train_flows.forecasting.comparison import SAMPLES, joined, to_series
from train_flows.forecasting.series_data import Example, SeriesData
from train_flows.run.folder import Run

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
SERIES, FEATURES = 3, 6  # series and features in a picture, at most
TIMES = 400  # of a curve
PANELS = {
    "NLL in standard deviations": {"nll": "validation"},
    "NLL in the units of the data": {"loss": "training, or its bound"},
    "CRPS in standard deviations": {"crps": "validation"},
    of_runs.COST: of_runs.SOLVES,
}


def draw_forecasts(run: Run, data: SeriesData, model: SeriesModel) -> list[Path]:
    """Draw curves of training, forecasts of some test series, and the paths of their states; return the files.

    A failed solve leaves a note.
    """
    curves = plots.run_curves(of_runs.drawn_records(run.records()), PANELS)
    return of_runs.save_pictures(run, curves, _pictures(data, model))


def _pictures(data: SeriesData, model: SeriesModel) -> Iterator[tuple[str, Figure]]:
    shown = data.test[:SERIES]
    time = f"days since {data.axis.origin}" if data.axis.origin else data.axis.name
    yield "forecast.png", _bands(data, model, shown)
    if len(data.columns) == 2:
        yield "plane.png", _plane(data, model, shown, time)
    yield "states.png", _states(data, model, shown, time)


def _times(each: Example) -> np.ndarray:
    """Return times of a curve from the start of the history to the end of the forecast."""
    return np.linspace(each.history.times[0], each.after.times[-1], TIMES)


def _quantiles(data: SeriesData, model: SeriesModel, each: Example) -> np.ndarray:
    """Return quantiles (5, TIMES, D) of the forecast of an example, in the history too."""
    torch.manual_seed(of_runs.SEED)
    forecast = model.forecast(to_series([each.history], model), torch.from_numpy(_times(each)), SAMPLES)
    return np.stack([_quantile(forecast, level)[0].cpu().numpy() for level in LEVELS])


def _quantile(forecast: torch.distributions.Distribution, level: float) -> Tensor:
    return forecast.icdf(torch.full(forecast.batch_shape, level))


def _bands(data: SeriesData, model: SeriesModel, shown: Sequence[Example]) -> Figure:
    columns = data.columns[:FEATURES]
    rows: list[list[series_plots.Bands]] = [[] for _ in columns]
    for each in shown:
        for row, panel in zip(rows, feature_bands(data, model, each), strict=False):
            row.append(panel)
    return series_plots.forecast_bands(rows, columns, data.axis.name)


def feature_bands(data: SeriesData, model: SeriesModel, each: Example) -> list[series_plots.Bands]:
    """Return the forecast of every feature of an example."""
    found, times, held_out = (
        _quantiles(data, model, each),
        data.axis.dates(_times(each)),
        joined(each.inside, each.after),
    )
    parts = [(data.axis.dates(part.times), part.values) for part in (each.history, held_out)]
    return [
        series_plots.Bands(each.history.name, *((at, values[:, j]) for at, values in parts), times, found[:, :, j])
        for j in range(len(data.columns))
    ]


def plane_path(data: SeriesData, model: SeriesModel, each: Example) -> series_plots.Path:
    """Return the medians of the first two features of an example."""
    median = _quantiles(data, model, each)[LEVELS.index(0.5), :, :2]
    points = (part.values[:, :2] for part in (each.history, each.after))
    return series_plots.Path(each.history.name, _times(each), median, *points, float(each.past.times[-1]))


def _plane(data: SeriesData, model: SeriesModel, shown: Sequence[Example], time: str) -> Figure:
    """Draw the medians of two features against each other."""
    return series_plots.paths([plane_path(data, model, each) for each in shown], data.columns, time)


def _states(data: SeriesData, model: SeriesModel, shown: Sequence[Example], time: str) -> Figure:
    """Draw the states of two dimensions in their vector field, and the principal components of more."""
    states = []
    for each in shown:
        at = torch.from_numpy(_times(each))
        states.append(model.trajectory(to_series([each.history], model), at)[0].double().cpu().numpy())
    labels = [f"state {i + 1}" for i in range(states[0].shape[1])]
    arrows = _field(model, np.concatenate(states)) if len(labels) == 2 and not model.config.periods else None
    if len(labels) == 1:
        states = [np.stack([_times(each), x[:, 0]], 1) for each, x in zip(shown, states, strict=True)]
        labels = [time, *labels]
    if len(labels) > 3:
        centred = np.concatenate(states) - np.concatenate(states).mean(0)
        _, scales, directions = np.linalg.svd(centred, full_matrices=False)
        share = (scales[:2] ** 2).sum() / (scales**2).sum()
        mean = np.concatenate(states).mean(0)
        states = [(x - mean) @ directions[:2].T for x in states]
        labels = [f"principal component 1 of {len(scales)} ({share:.0%} of the variance in two)", "component 2"]
    nothing = np.empty((0, len(labels)))
    panels = [
        series_plots.Path(each.history.name, _times(each), x, nothing, nothing, float(each.past.times[-1]))
        for each, x in zip(shown, states, strict=True)
    ]
    return series_plots.paths(panels, labels, time, arrows)


def _field(model: SeriesModel, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (M, 2) on a grid around states (N, 2), and the velocities there of an autonomous field."""
    positions = plots.grid(plots.extent(states), series_plots.ARROWS)
    like = model.scaling.mean
    velocities = model.paths.field(like.new_zeros(()), torch.from_numpy(positions).to(like))
    return positions, velocities.double().cpu().numpy()
