"""Maximum likelihood: its terms and weights, draws of bounds, warm-up of the divergence, and bad input."""

import math

import pytest
import torch
from fields import Linear, wild
from torch import nn

from anode import InputError
from cnf import Continuous, Flow, MaximumLikelihood, Normal, Planar, density_model

ENERGIES = ("kinetic", "frobenius", "acceleration")


@pytest.fixture
def flow():
    return wild(density_model((2,), hidden=(16, 16)))


def augmented(**options):
    """An augmented density with a learned posterior, far from its start."""
    model = density_model((2,), hidden=(6, 6), extra=1, posterior="learned", **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def test_weight_zero_is_plain_likelihood_bit_for_bit(flow):
    x = torch.randn(50, 2)
    plain, zero = MaximumLikelihood(flow)(x), MaximumLikelihood(flow, 0.0, 0.0, 0.0, steer=0.0)
    assert torch.equal(plain, zero(x))
    terms = zero.terms(x, energies=ENERGIES)
    assert torch.equal(plain, terms["nll"])
    assert torch.equal(plain, -flow.log_prob(x).mean())
    assert set(terms) == {"nll", *ENERGIES}


def test_the_loss_is_the_weighted_sum_of_its_terms(flow, float64):
    flow, x = flow.double(), torch.randn(20, 2)
    objective = MaximumLikelihood(flow, kinetic=0.1, frobenius=0.2, acceleration=0.3)
    terms = objective.terms(x)
    expected = terms["nll"] + 0.1 * terms["kinetic"] + 0.2 * terms["frobenius"] + 0.3 * terms["acceleration"]
    torch.testing.assert_close(objective(x), expected)


def test_conditional_batches_are_pairs():
    flow, x, c = wild(density_model((2,), hidden=(8,), context=3)), torch.randn(6, 2), torch.randn(6, 3)
    torch.testing.assert_close(MaximumLikelihood(flow)((x, c)), -flow.log_prob(x, c).mean())


def test_steering_moves_the_base(float64):
    """A field of constant speed 1 from a base at time b is a shift by 1 - b, uniform in [1 - s, 1 + s]."""
    flow = Flow(Continuous(Linear(torch.zeros(1, 1), torch.ones(1))), Normal((1,)))
    objective, far = MaximumLikelihood(flow, steer=0.5), torch.full((1, 1), 5.0)
    shifts = [5 - (2 * (objective(far).item() - math.log(2 * math.pi) / 2)) ** 0.5 for _ in range(60)]
    assert 0.5 - 1e-9 <= min(shifts) < 0.7
    assert 1.3 < max(shifts) <= 1.5 + 1e-9
    assert torch.equal(flow.log_prob(torch.ones(1, 1)), flow.log_prob(torch.ones(1, 1)))  # evaluation is not steered


@pytest.mark.parametrize("context", [0, 1])
def test_draws_of_the_objective_are_those_of_the_bound(float64, context):
    model, x = augmented(context=context), torch.randn(30, 2)
    c = torch.randn(30, 1) if context else None
    torch.manual_seed(3)
    loss = MaximumLikelihood(model, samples=8)(x if c is None else (x, c))
    torch.manual_seed(3)
    torch.testing.assert_close(loss, -model.log_prob(x, c, samples=8).mean())
    loss.backward()
    assert all(parameter.grad.any() for parameter in model.lift.parameters())


@pytest.mark.parametrize("samples", [1, 3])
def test_the_kl_weight_applies_to_the_divergence_of_the_posterior(float64, samples):
    model, x = augmented(), torch.randn(20, 2)
    objective = MaximumLikelihood(model, samples=samples)
    torch.manual_seed(3)
    bound = model.elbo(x.repeat(samples, 1))
    for weight in (0.25, 1.0):
        torch.manual_seed(3)
        loss = objective(x, kl_weight=weight)
        log_weights = (bound.value + (1 - weight) * bound.kl).view(samples, -1)
        torch.testing.assert_close(loss, -(log_weights.logsumexp(0) - math.log(samples)).mean())


def test_lifted_flows_have_energies():
    model = density_model((1, 2, 2), torch.randint(17, (50, 1, 2, 2)), hidden=(8, 8), levels=17)
    nn.init.normal_(model.split()[1].field.layers[-1].weight)
    assert MaximumLikelihood(model).terms(torch.randint(17, (9, 1, 2, 2)), energies=("kinetic",))["kinetic"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"kinetic": -1.0},
        {"kinetic": "much"},
        {"samples": 1.5},
        {"acceleration": math.nan},
        {"steer": 1.0},
        {"steer": -0.1},
        {"samples": 2},
    ],
)
def test_bad_numbers_are_refused(flow, options):
    with pytest.raises(InputError, match=next(iter(options))):
        MaximumLikelihood(flow, **options)


def test_bad_weights_of_the_divergence_are_refused(flow):
    for wrong in (-0.1, math.nan, "half"):
        with pytest.raises(InputError, match="kl_weight"):
            MaximumLikelihood(flow)(torch.randn(5, 2), kl_weight=wrong)


def test_energies_of_a_model_without_an_ode_are_refused():
    flow = Flow(Planar(2, 3), Normal((2,)))
    with pytest.raises(InputError, match="kinetic: the model does not have an ODE"):
        MaximumLikelihood(flow).terms(torch.randn(5, 2), energies=("kinetic",))
    for options in ({"acceleration": 1e-3}, {"steer": 0.1}):
        with pytest.raises(InputError, match=f"{next(iter(options))}: the model does not have an ODE"):
            MaximumLikelihood(flow, **options)


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        (torch.randn(5, 1), r"x of shape \(5, 1\)"),
        ("a batch", "x of type str cannot become a tensor"),
        ((torch.randn(5, 2),) * 3, "the batch has 3 parts"),
        (torch.randn(0, 2), "batch is empty"),
    ],
)
def test_bad_batches_are_refused(flow, batch, names):
    with pytest.raises(InputError, match=names):
        MaximumLikelihood(flow)(batch)
