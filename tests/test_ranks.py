"""Ranks in conditional distributions: of Gaussians and mixtures in closed form, of tables of several kinds."""

import math

import pytest
import torch
from stored_runs import spread
from torch.distributions import MultivariateNormal, Normal
from torch.special import ndtr

from cnf import density_model
from cnf.tables import Column, table_model
from cnf.tables.columns import encode
from train_flows.data import Dataset, Split
from train_flows.evaluation import ranks, two_sample
from train_flows.evaluation.wording import quality_table

COVARIANCE = torch.tensor([[1.0, 0.9, 0.3], [0.9, 1.0, 0.0], [0.3, 0.0, 2.0]], dtype=torch.float64)


def gaussian(n, covariance=COVARIANCE):
    return torch.randn(n, len(covariance), dtype=torch.float64) @ torch.linalg.cholesky(covariance).T


def conditional_of(x, mean, covariance, j):
    """Return the conditional distribution function of N(mean, covariance) at column j of rows x."""
    precision = torch.linalg.inv(covariance)
    deviations = ((x - mean) @ precision[:, j]) / precision[j, j].sqrt()
    return ndtr(deviations)


def moments(x):
    return x.mean(0), x.T.cov(correction=0)


def less_trend(model, rows):
    """Return numbers on their scales less what the states explain, and where they are present."""
    encoded = encode(model.columns, rows, noise=False)
    trend = model.flow.transform.transforms[0]
    return trend.encode(encoded.y.to(model.like), model.features(encoded.states, None)).double(), encoded.present


@pytest.mark.parametrize("correlation", [0.0, 0.9, 0.9999])
def test_of_a_gaussian_however_narrow(correlation):
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)
    x, exact = gaussian(100, covariance), MultivariateNormal(torch.zeros(2).double(), covariance)
    found = ranks.ranks(lambda points, _: exact.log_prob(points), x, torch.arange(100), 1, gaussian(1000)[:, 0])
    torch.testing.assert_close(found, conditional_of(x, torch.zeros(2).double(), covariance, 1), atol=4e-3, rtol=0)


def test_of_two_modes_that_depend_on_the_other_column():
    """x_1 given x_0 is (1 - w) N(-3, 0.1) + w N(2, 1) with w = sigmoid(x_0)."""
    x = torch.cat([torch.randn(200, 1), torch.where(torch.rand(200, 1) < 0.5, -3.0, 2.0) + torch.randn(200, 1)], 1)
    x, low, high = x.double(), Normal(-3, 0.1), Normal(2, 1)

    def log_p(points, _):
        w = points[:, 0].sigmoid()
        return ((1 - w) * low.log_prob(points[:, 1]).exp() + w * high.log_prob(points[:, 1]).exp()).log()

    w = x[:, 0].sigmoid()
    expected = (1 - w) * low.cdf(x[:, 1]) + w * high.cdf(x[:, 1])
    found = ranks.ranks(log_p, x, torch.arange(200), 1, x[:, 1])
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)


def test_of_a_table_of_several_kinds():
    """The untrained model is a Gaussian on the scales around a mean for each category."""
    y = gaussian(2000)
    colour = torch.randint(2, (2000,)).double()
    rows = torch.stack([y[:, 0].exp(), colour, y[:, 1], y[:, 2].sinh()], 1)
    columns = [
        Column("price", "positive", scale="log", low=0.0),
        Column("colour", "category", ("blue", "red")),
        Column("size"),
        Column("flux", scale="asinh"),
    ]
    model = table_model(columns, rows, hidden=(4,), whiten=True)
    found = ranks.conditional_ranks(model, Split(rows[:150]), rows)
    assert list(found) == [0, 2, 3]
    y, _ = less_trend(model, rows)
    for j, each in zip(range(3), found.values(), strict=True):
        torch.testing.assert_close(each, conditional_of(y[:150], *moments(y), j), atol=5e-3, rtol=0)


def test_rows_with_atoms_and_gaps_are_left_out():
    y = gaussian(900, COVARIANCE[:2, :2])
    y[:300, 0], y[300:600, 1] = 0.0, math.nan
    y = y[torch.randperm(900)]
    model = table_model([Column("a", atoms=(0.0,)), Column("b", gaps=True)], y, hidden=(4,), whiten=True)
    found = ranks.conditional_ranks(model, Split(y), y)
    z, occurs = less_trend(model, y)
    of = [each.nonzero()[:200, 0] for each in occurs.T]
    known, present, both = z[occurs.all(1)], z[of[0]], occurs[of[0], 1]
    values = [z[each, i] for i, each in enumerate(occurs.T)]
    mean = torch.stack([each.mean() for each in values])
    covariance = (known - mean).T @ (known - mean) / len(known)
    for i, each in enumerate(values):
        covariance[i, i] = each.var(correction=0)
    torch.testing.assert_close(found[0][both], conditional_of(present[both], mean, covariance, 0), atol=5e-3, rtol=0)
    alone = ndtr((present[~both, 0] - mean[0]) / covariance[0, 0].sqrt())
    torch.testing.assert_close(found[0][~both], alone, atol=5e-3, rtol=0)
    assert len(found[1]) == len(of[1])


def test_recorded_values_are_ranked_with_their_noise():
    x = (3 * gaussian(1000, COVARIANCE[:2, :2])).round()
    model = table_model([Column("a", "ordinal", step=1.0), Column("b", step=1.0)], x, hidden=(4,), whiten=True)
    found = ranks.conditional_ranks(model, Split(x), x)
    mean, covariance = moments(x)
    width, slope = torch.linalg.inv(covariance)[0, 0] ** -0.5, covariance[0, 1] / covariance[1, 1]
    error = (found[0] - conditional_of(x[:200], mean, covariance, 0)).abs().max()
    assert 0.03 < error < 0.5 * (1 + slope) / width / math.sqrt(2 * math.pi) + 5e-3  # half a step of either column


@pytest.mark.usefixtures("unrepeated")
class TestCoverage:
    @pytest.mark.parametrize("width", [1.0, 0.5])
    def test_right_by_construction_or_too_narrow(self, width):
        x = gaussian(3000)
        flow = density_model((3,), width * x, hidden=(4,), whiten=True)
        parts = [Split(x[a:b].float()) for a, b in ((1000, 3000), (0, 2), (0, 1000))]
        found = two_sample.measure_table(flow, Dataset("t", *parts, ("a", "b", "c"), is_table=True))["coverage"]
        assert [column["name"] for column in found] == ["a", "b", "c"]
        for column in found:
            assert column["values"] == 200
            for level, one in column["within"].items():
                half = Normal(0.0, 1.0).icdf(torch.tensor(0.5 + float(level[:-1]) / 200))
                expected = (2 * ndtr(width * half) - 1).item()
                assert one["share"] == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 200))
            assert (column["ks"] > 1.3 * column["chance"]) is (width < 1)

    def test_the_worst_column_is_named(self):
        x = gaussian(600).float()
        flow = density_model((3,), x * torch.tensor([1.0, 1.0, 0.3]), hidden=(4,), whiten=True)
        dataset = Dataset("t", Split(x[200:]), Split(x[:2]), Split(x[:200]), ("a", "b", "c"), is_table=True)
        line = quality_table(two_sample.measure_table(flow, dataset)).splitlines()[-1]
        assert line.startswith("coverage  ")
        assert line.endswith("c, the worst of 3 columns")


def test_contexts_stay_with_their_rows():
    c, x = torch.randn(30, 1), torch.randn(30, 1)
    flow = spread(density_model((1,), context=1, hidden=(8,)), 0.8)
    grid = torch.linspace(-15, 15, 1001)
    with torch.no_grad():
        p = torch.stack([flow.log_prob(grid[:, None], each.expand(1001, 1)).exp() for each in c])
    expected = torch.stack([torch.trapezoid(row * (grid <= each), grid) for row, each in zip(p, x, strict=True)])
    found = ranks.conditional_ranks(flow, Split(x, c=c), x)[0]
    torch.testing.assert_close(found.float(), expected / torch.trapezoid(p, grid), atol=2e-2, rtol=0)


def test_densities_that_are_not_exact_have_no_ranks():
    x = torch.randn(50, 3)
    for options in ({"divergence": "hutchinson"}, {"extra": 1}):
        assert ranks.conditional_ranks(density_model((3,), x, hidden=(4,), **options), Split(x), x) == {}


def test_the_work_is_limited(monkeypatch):
    x = torch.randn(300, 3)
    flow = density_model((3,), x, hidden=(4,))
    monkeypatch.setattr(ranks, "MAX_NUMBERS", 303 * 3 * 50)
    assert [len(each) for each in ranks.conditional_ranks(flow, Split(x), x).values()] == [50, 50, 50]
    monkeypatch.setattr(ranks, "MAX_NUMBERS", 303 * 2 * 20)
    assert [len(each) for each in ranks.conditional_ranks(flow, Split(x), x).values()] == [20, 20]
