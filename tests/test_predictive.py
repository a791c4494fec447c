"""Predictive distributions against scipy and their own samples."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import Normal

from anode.time_series.predictive import Mixture, StudentT, predictive

P = torch.tensor([0.01, 0.25, 0.5, 0.95], dtype=torch.float64)


@pytest.fixture
def components(float64):
    """Distributions of four samples of two series at three times, one feature: (K, B, T, D)."""
    loc, scale = 2 * torch.randn(4, 2, 3, 1), torch.rand(4, 2, 3, 1) + 0.2
    return {"gaussian": Normal(loc, scale), "student": StudentT(torch.full_like(loc, 3.5), loc, scale)}


def test_student_has_the_distribution_function_of_scipy(components):
    one, x = components["student"], torch.randn(4, 2, 3, 1)
    reference = scipy.stats.t(3.5, one.loc.numpy(), one.scale.numpy())
    np.testing.assert_allclose(one.cdf(x), reference.cdf(x.numpy()))
    for p in P:
        np.testing.assert_allclose(one.icdf(p), reference.ppf(p.item()))
    np.testing.assert_allclose(one.log_prob(x), reference.logpdf(x.numpy()))


@pytest.mark.parametrize("noise", ["gaussian", "student"])
def test_quantiles_invert_the_distribution_function(components, noise):
    mixture = predictive(components[noise])
    assert mixture.batch_shape == (2, 3, 1)
    for p in P:
        torch.testing.assert_close(mixture.cdf(mixture.icdf(p)), p.expand(2, 3, 1))
    each = P.view(4, 1, 1, 1)
    torch.testing.assert_close(mixture.icdf(each)[1], mixture.icdf(P[1]))
    torch.testing.assert_close(mixture.mean, components[noise].mean.mean(0))
    second = components[noise].variance + components[noise].mean.square()
    torch.testing.assert_close(mixture.variance, second.mean(0) - mixture.mean.square())


@pytest.mark.parametrize("noise", ["gaussian", "student"])
def test_samples_have_the_distribution(components, noise):
    mixture = predictive(components[noise])
    x = mixture.sample((4000,))
    assert x.shape == (4000, 2, 3, 1)
    shares = (x < mixture.icdf(P[1])).double().mean(0)
    torch.testing.assert_close(shares, P[1].expand(2, 3, 1), atol=4 * (0.25 * 0.75 / 4000) ** 0.5, rtol=0)
    assert mixture.sample().shape == (2, 3, 1)


def test_a_sample_follows_one_path():
    paths = torch.tensor([[0.0, 0.0], [10.0, 20.0]]).view(2, 1, 2, 1)
    x = predictive(Normal(paths, 0.01 * torch.ones_like(paths))).sample((200,)).squeeze()
    torch.testing.assert_close(x[:, 1], 2 * x[:, 0], atol=0.2, rtol=0)
    assert 60 < (x[:, 0] > 5).sum() < 140


def test_one_sample_is_no_mixture(components):
    one = predictive(Normal(components["gaussian"].loc[:1], components["gaussian"].scale[:1]))
    assert isinstance(one, Normal)
    assert one.batch_shape == (2, 3, 1)
    assert isinstance(predictive(components["gaussian"]), Mixture)
