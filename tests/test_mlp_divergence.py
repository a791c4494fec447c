"""The divergence rule of three and more hidden layers, whose backward pass is written by hand."""

import pytest
import torch
from fields import jacobians, wild
from torch import nn
from torch.func import functional_call

from anode import MLPField
from anode.mlp_divergence import forward_with_divergence, reference


class Rates(nn.Module):
    def __init__(self, field):
        super().__init__()
        self.field = field

    def forward(self, t, x, c):
        return self.field.velocity_and_divergence(t, x, c)


@pytest.fixture(params=["concat", "bias", "squash"])
def case(request, float64):
    """A field, and its velocity and divergence as a function of every tensor that they depend on."""
    context = 0 if request.param == "concat" else 2
    field = wild(MLPField(2, (4, 5, 3), ("tanh", "softplus", "silu"), request.param, context))
    names, values = zip(*field.named_parameters(), strict=True)

    def rates(x, c, *values):
        state = {f"field.{name}": value for name, value in zip(names, values, strict=True)}
        return functional_call(Rates(field), state, (torch.tensor(0.3), x, c if context else None))

    c = torch.randn(3, 2, requires_grad=context > 0)
    inputs = (torch.randn(3, 2, requires_grad=True), c)
    return field, rates, (*inputs, *(value.detach().clone().requires_grad_() for value in values))


def test_first_and_second_gradients_equal_finite_differences(case):
    _, rates, inputs = case
    assert torch.autograd.gradcheck(rates, inputs, eps=1e-6, atol=1e-6)
    assert torch.autograd.gradgradcheck(rates, inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("time", ["bias", "squash"])
def test_gradients_equal_those_of_the_reference(float64, time):
    field = wild(MLPField(2, (4, 5, 3), ("tanh", "softplus", "silu"), time, context=2))
    x, c, weights = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2), (torch.randn(3, 2), torch.randn(3))
    found = []
    for rule in (forward_with_divergence, reference):
        layers = [layer.as_affine(torch.tensor(0.3), c) for layer in field.layers]
        rates = rule(x, layers, field.activations)
        found.append(torch.autograd.grad(rates, [x, *field.parameters()], weights))
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)


def test_forward_mode_derivatives_along_a_path(case):
    """The energy of the acceleration takes them."""
    field, _, (x, c, *_) = case
    dx, c = torch.randn(3, 2), c if field.context else None

    def at(s):
        return field.velocity_and_divergence(0.3 + s, x + s * dx, c)

    _, along = torch.func.jvp(at, (torch.tensor(0.0),), (torch.tensor(1.0),))
    step = torch.tensor(1e-5)
    for found, above, below in zip(along, at(step), at(-step), strict=True):
        torch.testing.assert_close(found, (above - below) / 2e-5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dim", [1, 9])
def test_deep_perceptrons_in_one_dimension_and_in_many(float64, dim):
    field = wild(MLPField(dim, (4, 5, 6, 3)))
    x, t = torch.randn(5, dim), torch.tensor(0.3)
    velocity, divergence = field.velocity_and_divergence(t, x)
    torch.testing.assert_close(velocity, field(t, x))
    torch.testing.assert_close(divergence, jacobians(field, t, x).diagonal(dim1=1, dim2=2).sum(1))


def test_gradients_in_mixed_precision_are_finite():
    field = MLPField(3, (4, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        velocity, divergence = field.velocity_and_divergence(torch.tensor(0.5), torch.randn(5, 3))
    (velocity.sum() + divergence.sum()).float().backward()
    assert all(torch.isfinite(p.grad).all() for p in field.parameters())


def test_gradients_of_gradients_if_one_bias_is_trained(float64):
    field = MLPField(3, (4, 4, 4)).requires_grad_(False)
    bias = field.layers[-1].bias.requires_grad_()
    velocity, divergence = field.velocity_and_divergence(torch.tensor(0.5), torch.randn(5, 3))
    found = torch.autograd.grad(velocity.sum() + divergence.sum(), bias, create_graph=True)
    torch.testing.assert_close(found[0], torch.full_like(bias, 5.0))
