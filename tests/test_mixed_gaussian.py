"""The simplest density of a table of several kinds against distributions in closed form."""

import math

import pytest
import torch
from torch.distributions import Categorical, LogNormal, MultivariateNormal, Normal

from cnf.tables import Column, table_model
from cnf.tables.columns import encode
from train_flows.data import Dataset, Split
from train_flows.evaluation import likelihood, mixed_gaussian, wording


def rows(n):
    y = torch.randn(n, 2).double() @ torch.tensor([[1.0, 0.8], [0.0, 0.6]]).double()
    return torch.stack([y[:, 0].exp(), torch.randint(3, (n,)).double(), 5 + 2 * y[:, 1]], 1)


COLUMNS = [
    Column("price", "positive", scale="log", low=0.0),
    Column("colour", "category", ("a", "b", "c", "d")),
    Column("size"),
]


def test_frequencies_times_a_gaussian_on_the_scales():
    train, test = rows(1000), rows(200)
    y, y_test = (torch.stack([x[:, 0].log(), x[:, 2]], 1) for x in (train, test))
    gaussian = MultivariateNormal(y.mean(0), y.T.cov(correction=0))
    counts = torch.bincount(train[:, 1].long(), minlength=4) + 0.25
    expected = gaussian.log_prob(y_test) - y_test[:, 0] + Categorical(counts).log_prob(test[:, 1])
    torch.testing.assert_close(mixed_gaussian.log_prob(COLUMNS, train, test), expected)
    assert mixed_gaussian.log_prob(COLUMNS, train, torch.tensor([[1.0, 3.0, 5.0]]).double()).isfinite()


def test_it_is_the_untrained_model_without_a_trend():
    x = rows(600)[:, [0, 2]]
    x[:200, 1] = math.nan
    x = x[torch.randperm(600)]
    columns = [COLUMNS[0], Column("size", gaps=True)]
    model = table_model(columns, x, hidden=(4,), whiten=True).double()
    trend, whiten, _ = model.flow.transform.transforms
    trend.load_state_dict({name: torch.zeros_like(value) for name, value in trend.state_dict().items()})
    encoded = encode(model.columns, x)
    whiten.fit(encoded.y, encoded.present)
    with torch.no_grad():  # its frequencies are fitted by steps
        torch.testing.assert_close(mixed_gaussian.log_prob(columns, x, x), model.log_prob(x), atol=0.02, rtol=0)


def test_whole_numbers_have_probabilities_from_below():
    x = (100 + 4 * torch.randn(3000, 1).double()).round()
    columns = [Column("count", "ordinal", step=1.0)]
    gaussian = Normal(x.mean(), x.std(correction=0))
    expected = (gaussian.cdf(x + 0.5) - gaussian.cdf(x - 0.5)).log().squeeze(1)
    one, many = (mixed_gaussian.log_prob(columns, x, x, samples).mean() for samples in (1, 64))
    assert one < many <= expected.mean() + 1e-4
    assert many == pytest.approx(expected.mean().item(), abs=1e-3)


def test_it_is_printed_in_nats():
    x = rows(500)
    dataset = Dataset("t", Split(x), Split(x), Split(rows(100)), ("a", "b", "c"), is_table=True, kinds=tuple(COLUMNS))
    figures = likelihood.gaussian_figures(dataset)
    entropy = LogNormal(0.0, 1.0).entropy() + math.log(3) + math.log(2 * 0.6) + Normal(0.0, 1.0).entropy()
    assert figures["gaussian_nll"] == pytest.approx(entropy.item(), abs=0.3)
    assert figures == likelihood.gaussian_figures(dataset)
    assert wording.gaussian_row({"nll": {}, **figures}).startswith(f"NLL, Gaussian      {figures['gaussian_nll']:.4f}")
