"""Tables and findings of the experiments on series, against values worked out by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from anode import InputError
from train_flows.experiments import forecasting
from train_flows.experiments.grid import Scale
from train_flows.experiments.results import Outcome, Results
from train_flows.forecasting.series_data import Example, SeriesData, TimeSeries
from train_flows.forecasting.time_axis import TimeAxis


def write_weather(folder):
    """Values that count the days; the first day of the second file has another value than the last of the first."""
    days = pd.date_range("2013-01-01", "2013-03-02")
    first = pd.DataFrame({"date": days.strftime("%d/%m/%Y"), "meantemp": np.arange(61.0)})
    second = pd.DataFrame({"date": ["2013-03-02", "2013-03-03"], "meantemp": [100.0, 200.0]})
    first.to_csv(folder / "DailyDelhiClimateTrain.csv", index=False)
    second.to_csv(folder / "DailyDelhiClimateTest.csv", index=False)


def test_weather_is_joined_and_averaged_by_month(tmp_path):
    write_weather(tmp_path)
    scale = Scale(data_root=str(tmp_path))
    daily, monthly = (
        pd.read_csv(forecasting.weather_table(name, scale, tmp_path / "out"), index_col="date")
        for name in (forecasting.DAILY, forecasting.MONTHLY)
    )
    assert len(daily) == 62
    assert daily.meantemp[["2013-03-01", "2013-03-02", "2013-03-03"]].tolist() == [59.0, 100.0, 200.0]
    assert dict(monthly.meantemp) == {"2013-01-01": 15.0, "2013-02-01": 44.5, "2013-03-01": pytest.approx(359 / 3)}


def test_missing_weather_is_named(tmp_path):
    with pytest.raises(InputError, match=r"DailyDelhiClimateTrain.csv is missing: .* --data-root"):
        forecasting.weather_table(forecasting.DAILY, Scale(data_root=str(tmp_path)), tmp_path)


def test_climatologies_know_the_month():
    dates = pd.date_range("2013-01-01", periods=30, freq="MS")
    times = (dates - dates[0]).days.to_numpy(float)
    values = np.stack([np.arange(30.0) ** 2, np.ones(30)], 1)
    series = TimeSeries("", times, values)
    train, after = series.take(slice(20)), series.take(slice(20, 30))
    example = Example(train, train, train.take(slice(0)), after)
    data = SeriesData("", TimeAxis("date", "2013-01-01"), ("a", "b"), (train,), (), (example,), 600.0, 300.0)
    same, mean = forecasting.climatologies(data).values()
    months = [(20 + i) % 12 for i in range(10)]  # from September on, which has been seen once, as have the next three
    expected = [np.mean([k**2 for k in range(month, 20, 12)]) for month in months]
    assert same[:, 0].tolist() == pytest.approx(expected)
    assert mean[:, 0].tolist() == pytest.approx([np.mean(np.arange(20.0) ** 2)] * 10)
    assert same[:, 1].tolist() == mean[:, 1].tolist() == [1.0] * 10


def test_evaluations_are_compared_at_the_lowest_common_loss():
    def outcome(label, losses, evaluations):
        rows = zip([9.0, *losses], [0.0, *evaluations], strict=True)
        records = [{"loss": loss, "nfe_forward": nfe} for loss, nfe in rows]
        return Outcome(label, "months", 0, "", Path(), "success", records)

    plain = outcome(forecasting.PLAIN, [4.0, 2.0, 1.0], [20.0, 40.0, 80.0])
    augmented = outcome(forecasting.ONE, [3.0, 1.5, 1.2], [10.0, 12.0, 14.0])
    results = Results([plain, augmented])
    assert forecasting.at_equal_loss(results, forecasting.ONE) == pytest.approx(14 / 80)
