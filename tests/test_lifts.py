"""Lifts: exact where theory says so, bounds where it says that."""

import math

import pytest
import torch
from torch import nn

from anode import Augment, InputError
from cnf import (
    Dequantize,
    Flow,
    LiftedFlow,
    MaximumLikelihood,
    Standardize,
    density_model,
)


class Uniform(nn.Module):
    """The base U[0, 1]^D, for discrete data whose mass is then known."""

    shape = torch.Size((2,))
    like = torch.empty(0)

    def log_prob(self, z):
        return torch.where(((z >= 0) & (z < 1)).all(1), 0.0, -math.inf)

    def sample(self, n, temperature=1.0):
        return torch.rand(n, 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantised_data_project_back(dtype, levels):
    x = torch.randint(levels, (500, 1, 4, 4)).to(dtype)
    lift = Dequantize(levels)
    y, log_q, _ = lift(x)
    assert ((y >= 0) & (y < 1)).all()
    assert torch.equal(lift.project(y), x.to(y.dtype))
    torch.testing.assert_close(log_q, torch.full((500,), 16 * math.log(levels), dtype=y.dtype))


def test_bound_of_a_uniform_density_is_the_exact_mass():
    model = LiftedFlow(Dequantize(4), Flow(Standardize((2,)), Uniform()))
    x = torch.randint(4, (50, 2))
    torch.testing.assert_close(model.elbo(x), torch.full((50,), -2 * math.log(4)))
    torch.testing.assert_close(model.log_prob(x, samples=3), torch.full((50,), -2 * math.log(4)))
    assert model.kind == "bound"


def test_masses_of_discrete_data_sum_to_at_most_one():
    """The bound of a small model over all 3^2 values; the rest lies beyond the levels."""
    torch.manual_seed(0)
    data = torch.randint(3, (200, 2))
    model = density_model((2,), hidden=(8,), levels=3, alpha=0.01, data=data)
    values = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    with torch.no_grad():
        total = model.log_prob(values, samples=150).exp().sum().item()
    assert 0.9 < total < 1.02


def test_samples_are_levels_and_follow_the_bound():
    model = density_model((1, 2, 2), hidden=(8,), levels=5, data=torch.randint(5, (300, 1, 2, 2)))
    x = model.sample(50)
    assert x.shape == (50, 1, 2, 2)
    assert set(x.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert torch.isfinite(model.elbo(x)).all()


def test_training_raises_the_bound():
    data = 4 * torch.randint(2, (64, 1, 1, 1)).expand(64, 1, 2, 2)  # all pixels alike: far from the initial Gaussian
    model = density_model((1, 2, 2), hidden=(16,), levels=5, data=data)
    objective = MaximumLikelihood(model)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = objective(data)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5]) - 1


def test_importance_weights_of_estimates_are_refused():
    """E log mean exp of noisy log-densities lies above the bound: it would be none."""
    model = density_model((3,), levels=4, divergence="hutchinson")
    x = torch.randint(4, (5, 3))
    assert torch.isfinite(model.log_prob(x, samples=1)).all()
    with pytest.raises(InputError, match="no bound"):
        model.log_prob(x)


def test_integers_fit_a_model_of_any_precision():
    x = torch.randint(4, (5, 3))
    assert density_model((3,), levels=4).double().elbo(x).dtype == torch.float64


def test_zero_padding_is_refused():
    with pytest.raises(InputError, match="Zero padding"):
        LiftedFlow(Augment(1), density_model((3,)))


@pytest.mark.parametrize("x", [torch.tensor([[0.5, 1.0]]), torch.tensor([[4, 0]]), torch.tensor([[-1, 0]])])
def test_values_beside_the_levels_are_refused(x):
    with pytest.raises(InputError, match="0 to 3"):
        Dequantize(4)(x)


def test_bad_numbers_are_named():
    with pytest.raises(InputError, match="no batch"):
        Dequantize(4)(torch.tensor(1))
    with pytest.raises(InputError, match="levels=1"):
        Dequantize(1)
    with pytest.raises(InputError, match="samples=0"):
        density_model((2,), levels=3).log_prob(torch.zeros(1, 2), samples=0)
