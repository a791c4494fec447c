"""Variational inference against closed forms, and what it refuses."""

import math

import pytest
import torch
from fields import Linear, wild

from anode import InputError, Solver, count_evals
from cnf import Continuous, Flow, Normal, ReverseKL, density_model


def log_target(mean, std, constant=0.0):
    return lambda x: torch.distributions.Normal(mean, std).log_prob(x).sum(1) + constant


def test_reverse_kl_of_gaussians_is_known(float64):
    """A shift by b against N(m, s^2): KL = sum of log s + (1 + (b - m)^2) / (2 s^2) - 1/2."""
    field = Linear(torch.zeros(2, 2), torch.tensor([1.0, 0.0]))
    mean, std = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.7])
    loss = ReverseKL(Flow(Continuous(field), Normal((2,))), log_target(mean, std, constant=5.0))(200_000)
    kl = (std.log() + (1 + (field.b - mean) ** 2) / (2 * std**2) - 0.5).sum()
    assert loss.item() == pytest.approx(kl.item() - 5, abs=0.02)
    loss.backward()
    torch.testing.assert_close(field.b.grad, ((field.b - mean) / std**2).detach(), rtol=0, atol=0.03)


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
def test_one_solve_that_belongs_to_the_objective(gradient):
    flow = wild(density_model((2,), hidden=(16, 16), solver=Solver(gradient=gradient)))
    objective = ReverseKL(flow, log_target(torch.zeros(2), torch.ones(2)))
    with count_evals() as every, count_evals(objective) as own:
        objective(50).backward()
    assert own == every
    assert own.solves == 1


@pytest.mark.parametrize(
    ("target", "batch", "names"),
    [
        (3, 7, "cannot be called"),
        (lambda x: x[:, 0], 0, "batch=0"),
        (lambda x: x[:, 0], torch.randn(5, 2), "number of samples"),
        (lambda x: x[:, 0].detach().numpy(), 7, "log_target returned a ndarray"),
        (lambda x: x[:, :1], 7, r"shape \(7, 1\) for 7 points: return \(7,\)"),
        (lambda x: x, 7, r"shape \(7, 2\) for 7 points: return \(7,\)"),
        (lambda x: x.sum(), 7, r"shape \(\) for 7 points: return \(7,\)"),
        (lambda x: x[:, 0].detach(), 7, "differentiable"),
        (lambda x: x[:, 0] - math.inf, 7, "not finite at 7 of 7 points"),
    ],
)
def test_bad_targets_and_batches_are_refused(target, batch, names):
    with pytest.raises(InputError, match=names):
        ReverseKL(density_model((2,), hidden=(8,)), target)(batch)


def test_models_without_reparameterised_samples_are_refused():
    with pytest.raises(InputError, match="not a Flow"):
        ReverseKL(density_model((2,), levels=4), lambda x: x[:, 0])
    with pytest.raises(InputError, match="use Normal"):
        ReverseKL(density_model((2,), base="mixture"), lambda x: x[:, 0])
