"""``train-flows sample RUN --at START END --every 1d``: paths of a forecast, to a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import anode
from anode import InputError, storage
from anode.time_series import SeriesModel
from train_flows.data.dataset import abbreviate
from train_flows.forecasting.comparison import to_series
from train_flows.forecasting.forecast_settings import ForecastSettings
from train_flows.forecasting.loading import whole_series
from train_flows.forecasting.series_data import TimeSeries
from train_flows.forecasting.time_axis import TimeAxis
from train_flows.settings import from_config

MAX_TIMES = 100_000
CELLS = 2_000_000  # values of all paths that are in memory together
PATH, SERIES = "path", "series"  # columns that are added; the latter has the name of --series


def write_paths(
    folder: Path, at: Sequence[str], every: str | None, n: int, out: Path, device: torch.device | str, seed: int
) -> str:
    """Write n paths of each series of a run at some times, with a row for each path and time; return a line about it.

    The history of a series is what its table holds before the first time, as long as the histories of the run.

    Args:
        folder: of the run.
        at: first and last time with ``every``, otherwise all times; dates, or numbers.
        every: duration between the times, or None.
        n: number of paths.
        out: table to write.
        device: of the model.
        seed: of the paths.
    """
    config = storage.read_config(folder)
    settings = from_config(ForecastSettings, folder, config)
    model, columns = anode.load(folder, device), config["data"]["columns"]
    assert isinstance(model, SeriesModel), "of that kind"
    axis, series = whole_series(settings, config)
    times = wanted_times(axis, at, every)
    histories = [_history(one, axis, float(times[0]), config["data"]) for one in series]
    path = PATH
    while path in (axis.name, settings.data.series, *columns):
        path = f"model_{path}"
    named = settings.data.series or (SERIES if len(series) > 1 else None)
    torch.manual_seed(seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    size = max(1, CELLS // (n * len(times) * len(columns)))
    with storage.written_atomically(out) as file:
        for i in range(0, len(series), size):
            some = histories[i : i + size]
            paths = model.forecast(to_series(some, model), torch.from_numpy(times), n).sample((n,)).cpu().numpy()
            frame = _frame(paths, times, some, axis, columns, path, named)
            frame.to_csv(file, index=False, header=i == 0)
    of = f" of {len(series)} series" if len(series) > 1 else ""
    first, last = axis.show(float(times[0])), axis.show(float(times[-1]))
    return f"{n} paths{of} of {abbreviate(columns)} at {len(times):,} times from {first} to {last} in {out}"


def wanted_times(axis: TimeAxis, at: Sequence[str], every: str | None) -> np.ndarray:
    """Return times (T,), increasing, from what was typed; see :func:`write_paths`."""
    points = np.array([axis.point("--at", text) for text in at])
    if (np.diff(points) <= 0).any():
        raise InputError(f"--at {' '.join(at)} must increase")
    if every is None:
        return points
    if len(points) != 2:
        raise InputError(f"--every {every} needs the first and the last time, --at START END")
    step = axis.duration("--every", every)
    if (points[1] - points[0]) / step > MAX_TIMES:
        raise InputError(f"--every {every} makes more than {MAX_TIMES:,} times: pass a longer one")
    return points[0] + step * np.arange(int((points[1] - points[0]) / step + 1e-9) + 1)


def _history(series: TimeSeries, axis: TimeAxis, start: float, about: Mapping[str, Any]) -> TimeSeries:
    """Return the observations before a time, as long as the histories of the run."""
    before = series.take(slice(int(np.searchsorted(series.times, start))))
    if len(before) < 2:
        raise InputError(
            f"--at {axis.show(start)} is before the end of the history of {series.name}, which has to have 2 "
            f"observations and begins at {axis.show(float(series.times[0]))}: begin later"
        )
    first = min(int(np.searchsorted(before.times, before.times[-1] - about["history"])), len(before) - 2)
    return before.take(slice(first, None))


def _frame(
    paths: np.ndarray,
    times: np.ndarray,
    histories: Sequence[TimeSeries],
    axis: TimeAxis,
    columns: Sequence[str],
    path: str,
    named: str | None,
) -> pd.DataFrame:
    """Return paths (n, B, T, D) as a table, with columns for their numbers and for the series."""
    n, batch, count, _ = paths.shape
    shown = pd.Series(axis.dates(times))
    frame = pd.DataFrame(paths.swapaxes(0, 1).reshape(n * batch * count, -1), columns=list(columns))
    frame.insert(0, axis.name, pd.concat([shown] * (n * batch), ignore_index=True))
    frame.insert(0, path, np.tile(np.repeat(np.arange(1, n + 1), count), batch))
    if named:
        frame.insert(0, named, np.repeat([one.name for one in histories], n * count))
    return frame
