"""Mixtures of flows with one field: the explicit sum, the bound by one component, and flow matching."""

import math

import pytest
import torch
from fields import wild
from torch import nn

from anode import InputError, MLPField, count_evals
from cnf import (
    Compose,
    Continuous,
    FlowMatching,
    MaximumLikelihood,
    Mixture,
    MixtureFlow,
    Normal,
    SolveOptions,
    density_model,
)


@pytest.fixture
def model(float64):
    model = density_model((2,), hidden=(6, 6), extra=3, augmentation="categorical", context=1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def two_pieces(n=300, spread=0.3, at=4.0):
    return torch.cat([torch.randn(n, 2) * spread + place for place in (-at, at)])


def test_the_density_is_the_explicit_sum(model):
    x, c = torch.randn(7, 2), torch.randn(7, 1)
    total = torch.zeros(7)
    for k in range(3):
        mean, scale = model.mixture.means[k], model.mixture.log_scales[k].exp()
        z, log_det, _ = model.transform((x - mean) / scale, torch.cat([torch.eye(3)[k].expand(7, 3), c], 1))
        log_normal = Normal((2,)).log_prob(z) + log_det - scale.log().sum()
        total = total + model.mixture.weights[k] * log_normal.exp()
    torch.testing.assert_close(model.log_prob(x, c), total.log(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.elbo(x, c).value, model.log_prob(x, c))
    assert model.log_prob(x[:0], c[:0]).shape == (0,)


def test_components_solved_separately_are_the_same(model, monkeypatch):
    x, c = torch.randn(7, 2), torch.randn(7, 1)
    together = model.log_prob(x, c)
    monkeypatch.setattr("cnf.batches.MAX_POINTS", 8)
    with count_evals() as nfe:
        separately = model.log_prob(x, c)
    assert nfe.solves == 3
    torch.testing.assert_close(separately, together, rtol=1e-4, atol=1e-4)


def test_energies_are_means_over_the_components(model):
    x, c = torch.randn(5, 2), torch.randn(5, 1)
    shares, options = model.log_joint(x, c).softmax(0), SolveOptions(("kinetic",))
    energies = []
    for k in range(3):
        context = torch.cat([torch.eye(3)[k].expand(5, 3), c], 1)
        local = (x - model.mixture.means[k]) / model.mixture.log_scales[k].exp()
        energies.append(model.transform(local, context, options).energies["kinetic"])
    found = model.elbo(x, c, options).energies["kinetic"]
    torch.testing.assert_close(found, (shares * torch.stack(energies)).sum(0), rtol=1e-4, atol=1e-5)


def test_points_return(model):
    x, c = torch.randn(5, 2), torch.randn(5, 1)
    torch.testing.assert_close(model.round_trip(x, c), x, rtol=1e-3, atol=1e-3)


def test_it_starts_as_the_mixture_of_the_data(float64):
    x = two_pieces()
    model = density_model((2,), x, extra=2, augmentation="categorical")
    normal = torch.distributions.Normal(torch.tensor([-4.0, 4.0])[:, None], 0.3)
    known = normal.log_prob(x[:, None, :]).sum(2).logsumexp(1) - math.log(2)
    assert abs(model.log_prob(x).mean() - known.mean()) < 0.05


@pytest.mark.parametrize("posterior", ["normal", "fitted"])
def test_flow_matching_starts_from_the_component_of_the_data(float64, posterior):
    x = two_pieces()
    model = density_model((2,), x, extra=2, augmentation="categorical", posterior=posterior)
    ode, local, _, c, _ = model.matching_pair(x)
    assert model.couples_base
    torch.testing.assert_close(local.mean(0), torch.zeros(2), rtol=0, atol=0.05)  # each piece in its own coordinates
    torch.testing.assert_close(local.std(0), torch.ones(2), rtol=0, atol=0.05)
    assert torch.equal(c.argmax(1), model.log_joint(x).argmax(0))
    FlowMatching(model)(x).backward()
    assert ode.field.layers[-1].weight.grad.any()
    assert all(parameter.grad is None for parameter in model.mixture.parameters())  # it would shrink to the base


def test_the_bound_by_one_component_has_the_known_mean(float64):
    x = two_pieces(spread=1.0, at=1.0)
    model = density_model((2,), x, hidden=(6, 6), extra=2, augmentation="categorical", posterior="fitted")
    wild(model.transform.field)
    nn.init.normal_(model.mixture.means, std=0.4)
    points = torch.tensor([[0.0, 0.0], [0.5, -0.2], [-0.3, 0.1]])
    shares = model.posterior.log_joint(model.static.encode(points)[:, None], slice(None)).softmax(1).T
    mean = (shares * (model.log_joint(points) - shares.log())).sum(0)
    bounds = model.elbo(points.repeat(3000, 1)).value.view(3000, 3)
    assert ((bounds.mean(0) - mean).abs() < 4 * bounds.std(0) / math.sqrt(3000)).all()
    assert (mean < model.log_prob(points)).all()
    torch.testing.assert_close(
        MaximumLikelihood(model, samples=2000)(points), -model.log_prob(points).mean(), atol=0.03, rtol=0
    )
    assert not any(weight.requires_grad for weight in model.posterior.parameters())


def test_estimates_are_refused():
    with pytest.raises(InputError, match="biased"):
        density_model((2,), extra=2, augmentation="categorical", divergence="hutchinson")
    with pytest.raises(InputError, match="biased"):
        MixtureFlow(Compose([]), Mixture((2,), 2), Continuous(MLPField(2, context=2), divergence="hutchinson"))
    with pytest.raises(InputError, match=r"MixtureFlow\(Compose, Normal, Continuous\) needs a Transform"):
        MixtureFlow(Compose([]), Normal((2,)), Continuous(MLPField(2, context=2)))
