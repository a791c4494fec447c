"""The program forecast: from a table to scores, pictures and a run that resumes."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tasks import without_times

import anode
from anode.time_series import SeriesConfig
from train_flows.forecasting import comparison
from train_flows.forecasting.curves import LEVELS, TIMES, curve_times, quantile_curves
from train_flows.forecasting.forecast import ForecastTask, build, fit_to_data
from train_flows.forecasting.forecast_settings import ForecastData, ForecastSettings
from train_flows.forecasting.loading import load_series
from train_flows.run.animation import frames
from train_flows.run.folder import Run
from train_flows.settings import RunSettings, Training

QUICK = ("--steps", 6, "--validate-every", 2, "--hidden", 8, "--kind", "anode", "--extra", 1)


def table(path, days=120, seed=0):
    """Write two noisy features with a season of 20 days, some of whose cells are missing."""
    rng = np.random.default_rng(seed)
    t = np.arange(days)
    dates = np.datetime64("2020-01-01") + t
    a, b = np.sin(2 * np.pi * t / 20), 100 + 10 * np.cos(2 * np.pi * t / 20)
    cells = [f"{x:.4f}" if rng.random() > 0.1 else "" for x in b + rng.normal(size=days)]
    rows = zip(dates, a + 0.1 * rng.normal(size=days), cells, strict=True)
    path.write_text("day,a,b\n" + "".join(f"{date},{x:.4f},{y}\n" for date, x, y in rows))
    return path


@pytest.fixture
def forecast(run, tmp_path):
    table(tmp_path / "waves.csv")
    return lambda *args: run("forecast", "waves.csv", "--time", "day", "--horizon", "20d", *QUICK, *args)


def test_a_table_is_forecast_with_baselines_beside(forecast, tmp_path):
    status, out, err = forecast("--period", "20d", "--observed", 0.7)
    assert status == 0, err
    assert "forecasts of 20d from histories of 20d" in out
    for word in (
        "interpolation",
        "extrapolation",
        "seasonal naive",
        "ridge autoregression",
        " MSE ",
        "RMSE",
        "CRPS",
        "in 90%",
        "NFE",
    ):
        assert word in out, word
    assert "the model does not beat" in out  # after six steps
    folder = tmp_path / "runs" / "waves"
    result = json.loads((folder / "result.json").read_text())
    scores = result["scores"]
    assert set(scores["extrapolation"]) == {"model", "last value", "seasonal naive", "ridge autoregression"}
    assert set(scores["interpolation"]) == {"model", "linear interpolation"}
    assert set(scores["extrapolation"]["model"]["features"]) == {"a", "b"}
    assert scores["extrapolation"]["model"]["values"] <= 40
    assert result["nfe"] > 0
    for name in ("curves.png", "forecast.png", "plane.png", "states.png"):
        assert (folder / name).stat().st_size > 1000
    for name in ("forecast.gif", "plane.gif"):
        with Image.open(folder / name) as gif:
            assert gif.n_frames == len(Run.open(folder).records()) == 4
    assert anode.load(folder).config.periods == (20.0,)


@pytest.mark.usefixtures("undrawn")
def test_seasonal_naive_is_right_on_a_season(forecast, tmp_path):
    """Its error is that of the noise, twice: sqrt(2) 0.1 in a, which varies by sqrt(1/2 + 0.01)."""
    assert forecast("--period", "20d", "--target", "a")[0] == 0
    found = json.loads((tmp_path / "runs" / "waves" / "result.json").read_text())["scores"]["extrapolation"]
    naive = found["seasonal naive"]["features"]["a"]
    assert naive["rmse"] == pytest.approx(0.2**0.5 * 0.1**0.5, rel=0.35)
    assert naive["rmse"] < 0.5 * found["last value"]["features"]["a"]["rmse"]


@pytest.mark.usefixtures("undrawn")
def test_resuming_is_bit_for_bit(run, tmp_path):
    table(tmp_path / "waves.csv")
    common = ("--time", "day", "--horizon", "20d", "--kind", "latent", "--hidden", 8, "--schedule", "constant")
    options = (*common, "--observed", 0.7, "--validate-every", 2)
    assert run("forecast", "waves.csv", *options, "--steps", 6, "--out", "whole")[0] == 0
    assert run("forecast", "waves.csv", *options, "--steps", 4, "--out", "cut")[0] == 0
    assert run("forecast", "--resume", "cut", "--steps", 6)[0] == 0
    whole, cut = (Run.open(tmp_path / name) for name in ("whole", "cut"))
    assert without_times(whole.records()) == without_times(cut.records())
    weights = [anode.load(tmp_path / name).state_dict() for name in ("whole", "cut")]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    assert whole.result()["scores"] == cut.result()["scores"]
    drawn = [frames(one) for one in (whole, cut)]
    assert list(drawn[0]) == list(drawn[1]) == [0, 2, 4, 6]
    for step, frame in drawn[0].items():
        assert frame.shape == (5, TIMES, 2)
        assert np.array_equal(frame, drawn[1][step])
    assert not np.array_equal(drawn[0][0], drawn[0][6])


@pytest.mark.usefixtures("undrawn")
def test_a_changed_table_cannot_be_resumed(forecast, run, tmp_path):
    assert forecast()[0] == 0
    table(tmp_path / "waves.csv", seed=1)
    status, _, err = run("forecast", "--resume", "runs/waves", "--steps", 9)
    assert status == 2
    assert "waves.csv has changed since runs/waves began" in err


@pytest.mark.usefixtures("undrawn")
class TestStoredRuns:
    """A run of one program is used by the others."""

    @pytest.fixture
    def stored(self, run, tmp_path):
        table(tmp_path / "waves.csv")
        options = ("--kind", "latent", "--hidden", 8, "--steps", 2, "--horizon", "20d", "--observed", 0.8)
        assert run("forecast", "waves.csv", "--time", "day", *options)[0] == 0
        return run

    def test_evaluate_measures_again(self, stored, tmp_path):
        status, out, _ = stored("evaluate", "runs/waves", "--json")
        assert status == 0
        found = json.loads(out)["scores"]
        assert found == Run.open(tmp_path / "runs" / "waves").result()["scores"]
        tighter = json.loads(stored("evaluate", "runs/waves", "--json", "--rtol", 1e-6, "--atol", 1e-6)[1])["scores"]
        assert tighter["extrapolation"]["last value"] == found["extrapolation"]["last value"]
        score = found["extrapolation"]["model"]["crps"]
        assert tighter["extrapolation"]["model"]["crps"] == pytest.approx(score, rel=0.01)
        assert tighter["extrapolation"]["model"]["crps"] != score

    def test_evaluate_other_series_from_their_own_dates(self, stored, tmp_path):
        text = table(tmp_path / "other.csv", days=300, seed=2).read_text().splitlines()
        (tmp_path / "other.csv").write_text("\n".join([text[0], *text[150:]]))
        status, out, _ = stored("evaluate", "runs/waves", "other.csv")
        assert status == 0
        assert "test part of other.csv" in out
        (tmp_path / "other.csv").write_text("day,a\n2020-01-01,1\n2020-01-02,2\n")
        assert "--target b is not a column of other.csv" in stored("evaluate", "runs/waves", "other.csv")[2]

    def test_options_of_densities_are_refused(self, stored):
        for options in (("--divergence", "exact"), ("--samples", 3), ("--classify",)):
            status, _, err = stored("evaluate", "runs/waves", *options)
            assert status == 2
            assert "is for densities, runs/waves is a model of series: omit it" in err

    def test_changed_data_are_not_the_test_part(self, stored, tmp_path):
        table(tmp_path / "waves.csv", seed=1)
        status, _, err = stored("evaluate", "runs/waves")
        assert status == 2
        assert "waves.csv has changed since runs/waves was trained on it" in err

    def test_paths_go_to_a_table(self, stored, tmp_path):
        common = ("sample", "runs/waves", "--at", "2020-04-01", "2020-05-10", "--every", "12h", "-n", 30)
        status, out, err = stored(*common, "--out", "paths.csv")
        assert status == 0, err
        assert "30 paths of a, b at 79 times from 2020-04-01 to 2020-05-10 in paths.csv" in out
        frame = pd.read_csv(tmp_path / "paths.csv", parse_dates=["day"])
        assert list(frame) == ["path", "day", "a", "b"]
        assert frame.groupby("path").size().tolist() == [79] * 30
        assert frame.day.diff()[1:79].unique() == [pd.Timedelta("12h")]
        assert 60 < frame.b.mean() < 140  # in the units of the table
        stored(*common, "--out", "again.csv")
        assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "paths.csv").read_bytes()

    @pytest.mark.parametrize("value", ["x", "path", "series"])
    def test_paths_of_several_series_have_their_names(self, run, tmp_path, value):
        """The column of a path has another name if the table has one of that name."""
        rows = [f"{name},{t},{t % 7 + 0.1 * t}\n" for name in "ab" for t in range(60)]
        (tmp_path / "two.csv").write_text(f"id,t,{value}\n" + "".join(rows))
        options = ("--time", "t", "--series", "id", "--horizon", 5, "--steps", 1, "--hidden", 4)
        assert run("forecast", "two.csv", *options)[0] == 0
        status, _, err = run("sample", "runs/two", "--at", 60, 61, "-n", 3)
        assert status == 0, err
        frame = pd.read_csv(tmp_path / "samples.csv")
        number = "model_path" if value == "path" else "path"
        assert list(frame) == ["id", number, "t", value]
        assert frame.id.tolist() == ["a"] * 6 + ["b"] * 6
        assert frame[number].tolist() == [1, 1, 2, 2, 3, 3] * 2
        assert frame.t.tolist() == [60, 61] * 6

    def test_paths_start_from_the_observations_before(self, stored, tmp_path):
        """They do not depend on later rows of the table."""
        assert stored("sample", "runs/waves", "--at", "2020-03-01", "2020-03-09", "--out", "one.csv")[0] == 0
        text = (tmp_path / "waves.csv").read_text().splitlines()
        (tmp_path / "waves.csv").write_text("\n".join([row for row in text if row < "2020-03-01" or row > "a"]))
        assert stored("sample", "runs/waves", "--at", "2020-03-01", "2020-03-09", "--out", "two.csv")[0] == 0
        assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ((), "runs/waves is a model of series: pass its times by --at"),
            (("--at", "2019-01-01", "2020-02-01"), "--at 2019-01-01 is before the end of the history of waves"),
            (("--at", "2020-05-01", "2020-04-01"), "--at 2020-05-01 2020-04-01 must increase"),
            (("--at", "2020-05-01", "--every", "1d"), "--every 1d needs the first and the last time"),
            (("--at", "2020-05-01", "2020-06-01", "--every", "1s"), "--every 1s makes more than 100,000 times"),
            (("--at", "soon"), "--at soon must be a date"),
            (("--at", "2020-05-01", "--label", "x"), "--label is for densities"),
        ],
    )
    def test_mistakes_in_times_are_one_line(self, stored, tmp_path, options, message):
        status, _, err = stored("sample", "runs/waves", *options)
        assert (status, err.count("\n")) == (2, 1)
        assert message in err
        assert not (tmp_path / "samples.csv").exists()

    def test_runs_are_compared(self, stored, tmp_path):
        status, out, _ = stored("report", "runs/waves")
        assert status == 0
        assert "test CRPS" in out
        assert (tmp_path / "report.png").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["spirals", "--time", "t"], "--time is for tables, spirals is generated: omit it"),
        (["waves.csv"], "--time is missing: name the column of times of waves.csv, one of day, a, b"),
        (["waves.csv", "--time", "day", "--horizon", "3d", "--split", "2020-02-01"], "--horizon and --split exclude"),
        (["waves.csv", "--time", "day", "--day-first", "--date-format", "%d"], "--day-first and --date-format exclude"),
        (["waves.csv", "--time", "day", "--horizon", "1000d"], "--horizon 1000d is before the end of the history"),
        (["waves.csv", "--time", "day", "--split", "2021-01-01"], "leaves nothing to forecast: the last time of"),
        (
            ["spirals", "--start", "learned", "--kl-warm-up", "5"],
            "--kl-warm-up has no effect on --kind node --start learned",
        ),
        (["spirals", "--steps", "50", "--horizon-warm-up", "50"], "--horizon-warm-up 50 takes all of the 50 steps"),
        (["waves.csv", "--time", "day", "--latent", "3"], "--latent has no effect on --kind anode"),
        (["waves.csv", "--time", "day", "--decoder", "3"], "--decoder has no effect on --kind anode"),
        (["waves.csv", "--time", "day", "--start", "learned", "--encoder", "3"], "--encoder has no effect on"),
        (["waves.csv", "--time", "day", "--kind", "ode-rnn", "--encoder", "3"], "--encoder has no effect on"),
        (["waves.csv", "--time", "day", "--kind", "node", "--extra", "1"], "pass --kind anode or --kind latent"),
        (["waves.csv", "--time", "day", "--observed", "0"], "--observed 0"),
        (["nowhere.csv", "--time", "day"], "nowhere.csv does not exist"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, args, message):
    table(tmp_path / "waves.csv")
    status, _, err = run("forecast", *args)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "runs").exists()


def task_of(source, kind="node", **options):
    settings = ForecastSettings(
        data=ForecastData(source=str(source), **options),
        model=SeriesConfig(kind=kind),
        training=Training(batch_size=4),
        run=RunSettings(seed=1),
    )
    data = load_series(settings)
    settings = fit_to_data(settings, data)
    return ForecastTask(settings, data, build(settings, data)), data


def test_validation_leaves_random_numbers_alone(tmp_path):
    task, _ = task_of(table(tmp_path / "w.csv"), "latent", time="day", horizon="10d")
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    figures = task.validate()
    task.run = Run.temporary()
    assert task.validate() == figures
    task.run.log({"step": 0})
    assert list(frames(task.run)) == [0]
    assert torch.equal(torch.rand(3), expected)


def test_curves_are_quantiles_of_the_forecast(tmp_path):
    """The distribution function of the forecast at a curve is its level."""
    task, data = task_of(table(tmp_path / "w.csv"), time="day", horizon="10d")
    (each,) = data.test
    found, times = quantile_curves(task.model, each, 20), curve_times(each)
    assert (times[0], times[-1]) == (each.history.times[0], each.after.times[-1])
    forecast = task.model.forecast(comparison.to_series([each.history]), torch.from_numpy(times))
    for level, curve in zip(LEVELS, found, strict=True):
        torch.testing.assert_close(forecast.cdf(torch.from_numpy(curve)), torch.full_like(forecast.mean, level))


def test_scores_of_the_model_are_those_of_its_forecast(tmp_path):
    """They do not depend on padding, chunks or standard units."""
    task, data = task_of(table(tmp_path / "w.csv"), time="day", horizon="10d", observed=0.8)
    (each,) = data.test
    history = comparison.to_series([each.history])
    forecast = task.model.forecast(history, torch.from_numpy(each.after.times))
    found = comparison.compare(task.model, data)[0]["scores"]["extrapolation"]["model"]
    error = (forecast.mean[0].detach().double().numpy() - each.after.values) / data.scale
    assert found["mse"] == pytest.approx(np.nanmean(error**2), rel=1e-4)
    assert found["values"] == np.isfinite(each.after.values).sum()
    nll = -forecast.log_prob(torch.from_numpy(np.nan_to_num(each.after.values)).float())[0].detach().numpy()
    nll = (nll - np.log(data.scale))[np.isfinite(each.after.values)]
    assert found["nll"] == pytest.approx(nll.mean(), rel=1e-4)


def test_batches_hold_the_windows_of_their_step(tmp_path):
    task, data = task_of(table(tmp_path / "w.csv"), time="day", horizon="10d", test_series=0.0)
    history, target = task.batch(5)
    assert history.times.shape[0] == target.times.shape[0] == 4
    assert torch.equal(history.times[:, 0], target.times[:, 0])
    gap = ~np.isfinite(data.train[0].values)
    assert gap.any()
    assert float(target.mask.mean()) < 1
    assert (target.values[target.mask == 0] == 0).all()
