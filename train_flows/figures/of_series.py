"""Pictures of a run of series: curves of training, forecasts with bands, and paths of states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from anode.time_series import SeriesModel
from train_flows.figures import of_runs, plots, series_plots
from train_flows.forecasting.comparison import SAMPLES, joined, to_series
from train_flows.forecasting.curves import LEVELS, curve_times, quantile_curves
from train_flows.forecasting.series_data import Example, SeriesData
from train_flows.run.animation import frames
from train_flows.run.folder import Run

SERIES, FEATURES = 3, 6  # series and features in a picture, at most
PANELS = {
    "NLL in standard deviations": {"nll": "validation"},
    "NLL in the units of the data": {"loss": "training, or its bound"},
    "CRPS in standard deviations": {"crps": "validation"},
    of_runs.COST: of_runs.SOLVES,
}


def draw_forecasts(run: Run, data: SeriesData, model: SeriesModel) -> list[Path]:
    """Draw curves of training, forecasts of test series, also during training, and paths of states; return the files.

    A failed solve leaves a note.
    """
    curves = plots.run_curves(of_runs.drawn_records(run.records()), PANELS)
    return of_runs.save_pictures(run, curves, _pictures(run, data, model))


def _pictures(run: Run, data: SeriesData, model: SeriesModel) -> Iterator[tuple[str, of_runs.Picture]]:
    shown = data.test[:SERIES]
    time = f"days since {data.axis.origin}" if data.axis.origin else data.axis.name
    quantiles = [drawn_quantiles(model, each) for each in shown]
    bands = [feature_bands(data, each, found[:, :, :FEATURES]) for each, found in zip(shown, quantiles, strict=True)]
    rows = list(zip(*bands, strict=True))
    yield "forecast.png", series_plots.forecast_bands(rows, data.columns[:FEATURES], data.axis.name)
    if len(data.columns) == 2:
        paths = [plane_path(each, found) for each, found in zip(shown, quantiles, strict=True)]
        yield "plane.png", series_plots.paths(paths, data.columns, time)
    yield "states.png", _states(data, model, shown, time)
    yield from _animations(run, data, time)


def _animations(run: Run, data: SeriesData, time: str) -> Iterator[tuple[str, of_runs.Picture]]:
    """Yield the forecast of the first test series during training, in the axes of its last frame."""
    each, found = data.test[0], frames(run)
    if not found:  # each solve has failed, or an earlier version trained the run
        return
    titles = [f"{each.history.name}, step {step:,}" for step in found]
    bands = [feature_bands(data, each, quantiles) for quantiles in found.values()]
    figure = series_plots.forecast_bands(
        [[panel] for panel in bands[-1]], data.columns[: len(bands[-1])], data.axis.name
    )
    yield "forecast.gif", series_plots.animate(figure, series_plots.draw_bands, bands, titles)
    if len(data.columns) == 2:
        paths = [[plane_path(each, quantiles)] for quantiles in found.values()]
        figure = series_plots.paths(paths[-1], data.columns, time)
        yield "plane.gif", series_plots.animate(figure, series_plots.draw_path, paths, titles)


def drawn_quantiles(model: SeriesModel, each: Example) -> np.ndarray:
    """Return the quantiles (5, TIMES, D) of the forecast of an example, always by the same random numbers."""
    torch.manual_seed(of_runs.SEED)
    return quantile_curves(model, each, SAMPLES)


def feature_bands(data: SeriesData, each: Example, quantiles: np.ndarray) -> list[series_plots.Bands]:
    """Return the panels of features with quantiles (5, TIMES, D)."""
    name, times, held_out = each.history.name, data.axis.dates(curve_times(each)), joined(each.inside, each.after)
    panels = []
    for j in range(quantiles.shape[2]):
        points = [(data.axis.dates(part.times), part.values[:, j]) for part in (each.history, held_out)]
        panels.append(series_plots.Bands(name, *points, times, quantiles[:, :, j]))
    return panels


def plane_path(each: Example, quantiles: np.ndarray) -> series_plots.Path:
    """Return the path of the medians of the first two features."""
    median, seen, target = (x[:, :2] for x in (quantiles[LEVELS.index(0.5)], each.history.values, each.after.values))
    return series_plots.Path(each.history.name, curve_times(each), median, seen, target, float(each.past.times[-1]))


def _states(data: SeriesData, model: SeriesModel, shown: Sequence[Example], time: str) -> Figure:
    """Draw the states of two dimensions in their vector field, and the principal components of more."""
    states = []
    for each in shown:
        at = torch.from_numpy(curve_times(each))
        states.append(model.trajectory(to_series([each.history], model), at)[0].double().cpu().numpy())
    labels = [f"state {i + 1}" for i in range(states[0].shape[1])]
    arrows = _field(model, np.concatenate(states)) if len(labels) == 2 and not model.config.periods else None
    if len(labels) == 1:
        states = [np.stack([curve_times(each), x[:, 0]], 1) for each, x in zip(shown, states, strict=True)]
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
        series_plots.Path(each.history.name, curve_times(each), x, nothing, nothing, float(each.past.times[-1]))
        for each, x in zip(shown, states, strict=True)
    ]
    return series_plots.paths(panels, labels, time, arrows)


def _field(model: SeriesModel, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (M, 2) on a grid around states (N, 2), and the velocities there of an autonomous field."""
    positions = plots.grid(plots.extent(states), series_plots.ARROWS)
    like = model.scaling.mean
    velocities = model.paths.field(like.new_zeros(()), torch.from_numpy(positions).to(like))
    return positions, velocities.double().cpu().numpy()
