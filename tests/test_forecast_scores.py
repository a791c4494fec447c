"""Scores of forecasts against closed forms, numerical integration and samples."""

import resource

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from anode.time_series.predictive import Mixture, StudentT
from train_flows.forecasting import forecast_scores

SHAPE = (2, 3, 2)


def params(*more):
    return torch.randn(*SHAPE, *more), torch.rand(*SHAPE, *more) + 0.3


DISTRIBUTIONS = {
    "normal": lambda: Normal(*params()),
    "student": lambda: StudentT(torch.full(SHAPE, 4.0), *params()),
    "mixture": lambda: Mixture(Normal(*params(5))),
    "unequal mixture": lambda: MixtureSameFamily(Categorical(torch.rand(*SHAPE, 5)), Normal(*params(5))),
    "unequal mixture of student": lambda: MixtureSameFamily(
        Categorical(torch.rand(*SHAPE, 5)), StudentT(torch.full((*SHAPE, 5), 6.0), *params(5))
    ),
    "mixture of student": lambda: Mixture(StudentT(torch.full((*SHAPE, 5), 6.0), *params(5))),
}
EXACT = [name for name in DISTRIBUTIONS if not name.endswith("mixture of student")]


def integral(forecast, y):
    """Return the CRPS of each value by quadrature."""
    inside, u = torch.linspace(-1, 1, 200_001, dtype=torch.float64), 12.0
    x = u * inside / (1.02 - inside.abs())  # from -600 to 600, dense in the middle
    found = []
    for i in range(len(y)):
        one = forecast_scores.select(forecast, torch.arange(len(y)) == i)
        x_i = torch.cat([x, y[i : i + 1], y[i : i + 1]]).sort().values
        step = (x_i >= y[i]).double()
        step[(x_i == y[i]).nonzero()[0]] = 0
        found.append(torch.trapezoid((one.cdf(x_i) - step).square(), x_i))
    return torch.stack(found)


@pytest.mark.parametrize("name", EXACT)
def test_crps_is_the_integral(name):
    forecast = forecast_scores.select(DISTRIBUTIONS[name](), torch.ones(SHAPE, dtype=torch.bool))
    y = torch.randn(12).double()
    torch.testing.assert_close(forecast_scores.crps(forecast, y), integral(forecast, y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_crps_agrees_with_samples(name):
    forecast = forecast_scores.select(DISTRIBUTIONS[name](), torch.ones(SHAPE, dtype=torch.bool))
    y = torch.randn(12).double()
    a, b = forecast.sample((2, 100_000))
    each = (a - y).abs() - (a - b).abs() / 2
    error = each.std(0) / len(a) ** 0.5
    own = 1.0 / forecast_scores.CRPS_SAMPLES**0.5 if name not in EXACT else 0.0
    assert ((forecast_scores.crps(forecast, y) - each.mean(0)).abs() < 5 * (error + own)).all()


def test_crps_of_many_values_needs_little_memory():
    """1000 samples of each value and 100 components would take 80 MB a value, all pairs of samples 8 MB."""
    shape = (500, 100)
    inner = StudentT(torch.full(shape, 4.0).double(), torch.randn(shape).double(), torch.ones(shape).double())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forecast_scores.crps(MixtureSameFamily(Categorical(torch.ones(shape).double()), inner), torch.randn(500).double())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_only_flagged_values_are_scored(name):
    forecast, y, flags = DISTRIBUTIONS[name](), torch.randn(SHAPE), torch.rand(SHAPE) > 0.4
    torch.manual_seed(1)
    found = forecast_scores.values_scores(forecast, y, flags)
    torch.manual_seed(1)
    changed = forecast_scores.values_scores(forecast, y.where(flags, torch.nan), flags)
    assert found["feature"].tolist() == flags.nonzero()[:, -1].tolist()
    for score, values in found.items():
        torch.testing.assert_close(values, changed[score])
    torch.testing.assert_close(found["nll"], -forecast.log_prob(y)[flags].double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["mse"], (forecast.mean - y)[flags].double() ** 2, rtol=1e-4, atol=1e-5)


def test_intervals_cover_what_the_forecast_draws():
    forecast = Mixture(Normal(torch.randn(1, 20_000, 1, 3), torch.rand(1, 20_000, 1, 3) + 0.2))
    found = forecast_scores.values_scores(forecast, forecast.sample(), torch.ones(1, 20_000, 1, dtype=torch.bool))
    for name, level in forecast_scores.LEVELS.items():
        assert abs(found[name].mean() - level) < 4 * (level * (1 - level) / 20_000) ** 0.5


def test_summaries_do_not_depend_on_units():
    """Figures of all features are those of standardised values; figures of a feature have its unit."""
    loc, scale, y = *params(), torch.randn(SHAPE)
    flags, unit = torch.ones(SHAPE, dtype=torch.bool), torch.tensor([10.0, 0.1])
    plain, scaled = (
        forecast_scores.summarise(
            forecast_scores.values_scores(Normal(u * loc, u * scale), u * y, flags), ["a", "b"], np.asarray(u)
        )
        for u in (torch.ones(2), unit)
    )
    for score in ("mse", "rmse", "mae", "nll", "crps", "coverage_50", "coverage_90"):
        assert plain[score] == pytest.approx(scaled[score], rel=1e-4), score
    for power, score in ((1, "rmse"), (2, "mse"), (1, "mae"), (1, "crps")):
        ratio = scaled["features"]["a"][score] / plain["features"]["a"][score]
        assert ratio == pytest.approx(10**power, rel=1e-4), score
    assert plain["rmse"] == pytest.approx(((loc - y) ** 2).mean().sqrt().item(), rel=1e-5)
    assert plain["features"]["b"]["mae"] == pytest.approx((loc - y)[..., 1].abs().mean().item(), rel=1e-5)
