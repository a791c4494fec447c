"""Windows of series to train on: a history, and the whole window to learn; drawn by the number of the step alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from train_flows.data.dataset import SEED_STRIDE
from train_flows.forecasting.series_data import SeriesData, TimeSeries
from train_flows.forecasting.splitting import draw_seen
from train_flows.run.step import shuffled_batches


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of a series to learn from.

    Attributes:
        history: observations that the model sees, two at least.
        target: all observations of the window, those of the history included.
    """

    history: TimeSeries
    target: TimeSeries


def window_starts(data: SeriesData) -> np.ndarray:
    """Return the series and the first observation of every window, (N, 2).

    A window is as long as a history and a forecast together. Those of a shorter series begin in its first half and end
    with it.
    """
    length, found = data.history + data.horizon, []
    for i, series in enumerate(data.train):
        last = series.times[-1] - (length if series.span >= length else series.span / 2)
        count = max(1, int(np.searchsorted(series.times, last, side="right")))
        found.append(np.stack([np.full(count, i), np.arange(count)], axis=1))
    return np.concatenate(found)


def training_windows(data: SeriesData, batch_size: int, seed: int, warm_up: int = 0) -> Callable[[int], list[Window]]:
    """Return windows as a function of the step alone, so that resuming needs no state.

    Each epoch has all windows in another order. The history of a window of full length is as long as that of a
    forecast. That of a shorter one ends at a random time in its last part, as long as the share of the forecast in a
    window of full length. Training hides a share of the history, at random.

    Args:
        data: the series.
        batch_size: windows of a step, not more than there are.
        seed: of order, cuts and observations seen.
        warm_up: steps over which targets grow to the length of their windows; those that are too long at first hide
            oscillations from the gradient.
    """
    starts = window_starts(data)
    rows = shuffled_batches(torch.arange(len(starts)), batch_size, seed)

    def batch(step: int) -> list[Window]:
        rng = np.random.default_rng(SEED_STRIDE * seed + step)
        windows = [_window(data, data.train[i], int(first), rng) for i, first in starts[rows(step).numpy()]]
        return [_begun(window, (step + 1) / warm_up) for window in windows] if step + 1 < warm_up else windows

    return batch


def _window(data: SeriesData, series: TimeSeries, first: int, rng: np.random.Generator) -> Window:
    start, length = float(series.times[first]), data.history + data.horizon
    last = int(np.searchsorted(series.times, start + length, side="right"))
    target = series.take(slice(first, last))
    history = data.history if series.span >= length else rng.uniform(data.history / length, 1) * target.span
    count = max(2, int(np.searchsorted(target.times, start + history, side="right")))
    return Window(target.take(slice(count)).take(draw_seen(count, 1 - data.hidden, rng)), target)


def _begun(window: Window, share: float) -> Window:
    """Return a window with the first share of its target, two observations at least."""
    target = window.target
    count = int(np.searchsorted(target.times, target.times[0] + share * target.span, side="right"))
    return Window(window.history, target.take(slice(max(2, count))))
