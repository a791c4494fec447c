"""Generated series of the literature: spirals in the plane, and sinusoids of different frequencies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from train_flows.data.dataset import SEED_STRIDE
from train_flows.forecasting.series_data import SeriesData, TimeSeries
from train_flows.forecasting.splitting import Split, draw_seen, example, split_series
from train_flows.forecasting.time_axis import TimeAxis

COUNT = 1000  # of series
POINTS = 100  # observations of a history of spirals, of a whole sinusoid
SPIRAL_POINTS, SPIRAL_END, SPIRAL_NOISE, SPIRAL_WIDTH = 500, 6 * np.pi, 0.3, 0.3  # of the two curves
FREQUENCIES, SINE_END, SINE_NOISE, LEVEL = (0.4, 0.8), 5.0, 0.01, (1.0, 0.1)  # mean and deviation of the level
STEP = SPIRAL_END / (SPIRAL_POINTS - 1)
STREAMS = {"spirals": 11, "sines": 12}  # of random numbers


def generate(name: str, split: Split) -> SeriesData:
    """Return the series of a recipe, the same for the same seed of the split.

    Args:
        name: ``spirals`` or ``sines``.
        split: how to hold out; the horizon and the share of series to test are those of the literature by default.
    """
    rng = np.random.default_rng(SEED_STRIDE * split.seed + STREAMS[name])
    series, horizon = _spirals(rng) if name == "spirals" else _sines(rng)
    split = dataclasses.replace(split, horizon=split.horizon or horizon, hide=name == "sines")
    if name == "sines":
        return split_series(name, TimeAxis(), ("value",), series, split)
    whole = [one for one in series if len(one) == 2 * POINTS]  # only these can be held out
    shorter = [one for one in series if len(one) < 2 * POINTS]
    return _without_futures(split_series(name, TimeAxis(), ("x", "y"), whole, split), shorter, split.observed, rng)


def _without_futures(
    data: SeriesData, shorter: Sequence[TimeSeries], observed: float, rng: np.random.Generator
) -> SeriesData:
    """Return spirals of which training and validation know the observations among the first 100 points alone."""
    length = (POINTS - 0.5) * STEP
    train = []
    for one in (*data.train, *shorter):
        before = one.between(end=float(one.times[0]) + length)
        train.append(before.take(draw_seen(len(before), observed, rng)))
    validation = []
    for each in data.validation:
        end = float(each.past.times[0]) + length
        validation.append(example(each.past, end - length / 2, end, length, 1.0, rng))
    return dataclasses.replace(data, train=tuple(train), validation=tuple(validation))


def _spirals(rng: np.random.Generator) -> tuple[list[TimeSeries], float]:
    """Return parts of two spirals, one clockwise and one counter-clockwise, half of the series of each.

    Each part begins at another of 500 points. Its first 100 points are a history. The next 100 are the forecast; the
    curve ends before some of them, and such a part is one to train on.

        counter-clockwise: r = 0.3 t, angle t, shifted by 5      clockwise: r = 15 / (1 + 6 pi - t), angle 6 pi + 1 - t

    References:
        Chen et al. 2018, arXiv 1806.07366, section 5.1; curves and noise of torchdiffeq's example
        ``latent_ode``.
    """
    t = np.linspace(0, SPIRAL_END, SPIRAL_POINTS)
    angle = SPIRAL_END + 1 - t
    clockwise = (SPIRAL_WIDTH * 50 / angle)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) - [5, 0]
    counter = (SPIRAL_WIDTH * t)[:, None] * np.stack([np.cos(t), np.sin(t)], 1) + [5, 0]
    starts = rng.integers(POINTS, SPIRAL_POINTS - POINTS, size=COUNT, endpoint=True)
    series = []
    for i, start in enumerate(starts):
        truth = (clockwise if i % 2 else counter)[start : start + 2 * POINTS]
        noisy = truth + SPIRAL_NOISE * rng.standard_normal(truth.shape)
        series.append(TimeSeries(f"{'clockwise' if i % 2 else 'counter'} {i}", t[: len(truth)], noisy, truth))
    return series, (POINTS - 0.5) * STEP


def _sines(rng: np.random.Generator) -> tuple[list[TimeSeries], float]:
    """Return sinusoids of amplitude 1, frequency from 0.4 to 0.8 and level from N(1, 0.1^2), at 100 irregular times.

    All have the same times, as published. The second half is the forecast.

    References:
        Rubanova et al. 2019, arXiv 1907.03907, section 4.1; parameters of its repository, ``latent_ode``.
    """
    times = np.sort(np.concatenate([[0.0], rng.uniform(0, SINE_END, POINTS - 1)]))
    frequencies, levels = rng.uniform(*FREQUENCIES, COUNT), rng.normal(*LEVEL, COUNT)
    truth = np.sin(2 * np.pi * frequencies[:, None] * times) + levels[:, None]
    values = truth + SINE_NOISE * rng.uniform(size=truth.shape) * (times > 0)  # uniform noise, none at the first time
    middle = (times[POINTS // 2 - 1] + times[POINTS // 2]) / 2
    series = [
        TimeSeries(f"sine {i}", times, x[:, None], y[:, None])
        for i, (x, y) in enumerate(zip(values, truth, strict=True))
    ]
    return series, float(times[-1] - middle)
