"""Quantiles of a forecast as curves, for pictures."""

from __future__ import annotations

import numpy as np
import torch

from anode.time_series import SeriesModel
from train_flows.forecasting.comparison import to_series
from train_flows.forecasting.series_data import Example

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
TIMES = 400  # of a curve


def curve_times(each: Example) -> np.ndarray:
    """Return times (TIMES,) of a curve, from the start of the history to the end of the forecast."""
    return np.linspace(each.history.times[0], each.after.times[-1], TIMES)


def quantile_curves(model: SeriesModel, each: Example, samples: int) -> np.ndarray:
    """Return quantiles (5, TIMES, D) of the forecast of an example, in the history too.

    Args:
        model: forecasts the example from its history.
        each: the example.
        samples: of a latent state.
    """
    forecast = model.forecast(to_series([each.history], model), torch.from_numpy(curve_times(each)), samples)
    return np.stack([forecast.icdf(torch.full_like(forecast.mean, level))[0].cpu().numpy() for level in LEVELS])
