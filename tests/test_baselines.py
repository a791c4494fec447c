"""Forecasts to compare with, on series whose future is known."""

import numpy as np
import pytest

from train_flows.forecasting import baselines
from train_flows.forecasting.generated import generate
from train_flows.forecasting.series_data import TimeSeries
from train_flows.forecasting.splitting import Split, split_series
from train_flows.forecasting.time_axis import TimeAxis


def series(times, *values):
    return TimeSeries("one", np.asarray(times, dtype=float), np.stack(values, axis=1).astype(float))


def data_of(one, horizon, **options):
    columns = [f"x{j}" for j in range(one.values.shape[1])]
    return split_series("made", TimeAxis(), columns, [one], Split(horizon=horizon), **options)


PAST = series([0, 1, 2, 3], [1, 2, 3, np.nan], [np.nan, 5, np.nan, 7])


def test_the_last_value_of_each_feature():
    found = baselines.last_value(PAST, np.array([0.5, 1.0, 2.5, 10.0]))
    np.testing.assert_array_equal(found, [[1, np.nan], [2, 5], [3, 5], [3, 7]])


def test_straight_lines_between_observations():
    found = baselines.linear_interpolation(PAST, np.array([0.5, 2.0, 10.0]))
    np.testing.assert_allclose(found, [[1.5, 5], [3, 6], [3, 7]])


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_seasonal_naive_continues_any_periodic_series(shift):
    """Whatever the shape of a season, it comes again; between grid points as the interpolation of the past."""
    shape = np.random.default_rng(0).normal(size=7)
    times = np.arange(7 * 4)
    past = series(times, shape[times % 7])
    at = np.arange(28, 28 + 20) + shift
    expected = np.interp(at % 7, np.arange(8), np.append(shape, shape[0]))
    last = at < 28 if shift else np.zeros_like(at, dtype=bool)
    found = baselines.seasonal_naive(7.0)(past, at)[:, 0]
    np.testing.assert_allclose(found[~last], expected[~last])


def test_seasonal_naive_takes_the_last_season():
    times = np.arange(8)
    past = series(times, np.where(times < 4, 0, times))
    np.testing.assert_array_equal(
        baselines.seasonal_naive(4.0)(past, np.array([8, 9, 11, 12, 15]))[:, 0], [4, 5, 7, 4, 7]
    )


def test_ridge_autoregression_continues_linear_dynamics():
    """A damped oscillation of two coupled features follows a linear recursion exactly."""
    t = np.arange(200.0)
    x, y = np.exp(-0.002 * t) * np.cos(0.3 * t), np.exp(-0.002 * t) * np.sin(0.3 * t)
    past = series(t[:150], 5 + x[:150], 100 * y[:150])
    forecast = baselines.ridge_autoregression([past])
    found = forecast(past, t[150:])
    np.testing.assert_allclose(found[:, 0], 5 + x[150:], atol=0.02)
    np.testing.assert_allclose(found[:, 1], 100 * y[150:], atol=2)


def test_ridge_autoregression_takes_irregular_times_and_gaps():
    t = np.sort(np.random.default_rng(0).uniform(0, 60, 600))
    x = np.sin(t)
    gaps = np.where(np.arange(600) % 5 == 0, np.nan, x)
    past = series(t[:500], gaps[:500], np.cos(t[:500]))
    found = baselines.ridge_autoregression([past])(past, t[500:530])
    np.testing.assert_allclose(found[:, 0], x[500:530], atol=0.15)


def test_ridge_autoregression_is_left_out_where_its_grid_is_too_large_or_too_small():
    assert baselines.ridge_autoregression([series([0, 1, 1e9], [0, 1, 2])], step=1.0) is None
    assert baselines.ridge_autoregression([series([0, 1, 2], [0, 1, 2])]) is None


def test_the_spread_of_a_baseline_is_the_error_of_its_forecasts():
    """The last value of a random walk of unit steps is off by sqrt(h) h steps ahead."""
    walk = np.random.default_rng(0).normal(size=20_000).cumsum()
    data = data_of(series(np.arange(20_000), walk), 9.0)
    expected = np.sqrt(np.mean(np.arange(1, 10)))
    assert baselines.spread(data, baselines.last_value)[0] == pytest.approx(expected, rel=0.2)


def test_a_seasonal_baseline_needs_a_season_of_past():
    t = np.arange(100.0)
    one = series(t, np.sin(t))
    assert "seasonal naive" in baselines.forecasters(data_of(one, 10.0, period=20.0))[0]
    (note,) = baselines.forecasters(data_of(one, 10.0))[1]
    assert note == "no seasonal baseline, since no season is known: name its length by --period"
    (note,) = baselines.forecasters(generate("sines", Split(test_series=0.2)))[1]
    assert "--period" not in note  # which generated series refuse
    found, notes = baselines.forecasters(data_of(one, 10.0, period=95.0))
    assert "seasonal naive" not in found
    assert notes == ["no seasonal baseline: the past is shorter than a season of 95"]
