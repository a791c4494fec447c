"""Layers and activations against torch's own, and slopes against automatic differentiation."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anode.layers import SquashLinear, TimedConv, TimedLinear, activation_named


@pytest.mark.parametrize("name", ["tanh", "softplus", "relu", "silu"])
def test_slopes_and_curvatures_are_derivatives(float64, name):
    a = torch.linspace(-9, 9, 200, requires_grad=True)
    h, slope = activation_named(name).with_slope(a)
    torch.testing.assert_close(h, activation_named(name).value(a))
    torch.testing.assert_close(slope, torch.autograd.grad(h.sum(), a, create_graph=True)[0], rtol=1e-9, atol=1e-9)
    curvature = activation_named(name).curvature(a, h, slope)
    if name == "relu":
        assert not curvature.any()
    else:
        torch.testing.assert_close(curvature, torch.autograd.grad(slope.sum(), a)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "reference"), [("tanh", torch.tanh), ("softplus", lambda a: torch.logaddexp(a, torch.zeros_like(a)))]
)
def test_activations_built_from_sigmoids_are_accurate(name, reference, dtype):
    a = torch.cat([torch.linspace(-60, 60, 1001), torch.tensor([0.0, -1e30, 1e30])]).to(dtype).requires_grad_()
    found, expected = activation_named(name).value(a), reference(a)
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)
    slopes = [torch.autograd.grad(h.sum(), a)[0] for h in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_softplus_in_half_precision():
    a = torch.tensor([-8.0, 0.0, 8.0, 12.0, 18.0, 40.0])
    found = activation_named("softplus").value(a.half())
    torch.testing.assert_close(found.float(), F.softplus(a), rtol=2e-3, atol=2e-3)


def test_a_timed_layer_is_one_linear_layer_of_the_joined_input(float64):
    layer, joined = TimedLinear(3, 5, context=2, timed=True), nn.Linear(6, 5)
    joined.weight.data = torch.cat([layer.weight, layer.time[:, None], layer.context], 1).detach()
    joined.bias.data = layer.bias.data
    t, h, c = torch.rand(4), torch.randn(4, 3), torch.randn(4, 2)
    torch.testing.assert_close(layer(t, h, c), joined(torch.cat([h, t[:, None], c], 1)))


@pytest.mark.parametrize("t", [torch.tensor(0.7), torch.tensor([0.1, 0.5, 0.2, 0.9])])
def test_a_squash_layer_gates_and_shifts_a_linear_layer(float64, t):
    layer, h, c = SquashLinear(3, 5, context=2), torch.randn(4, 3), torch.randn(4, 2)
    t = t.double()
    column = t.reshape(-1, 1)
    gate = torch.sigmoid(column * layer.gate_time + layer.gate_bias)
    expected = (h @ layer.weight.T + layer.bias) * gate + column * layer.time + c @ layer.context.T
    torch.testing.assert_close(layer(t, h, c), expected)


@pytest.mark.parametrize("t", [torch.tensor(0.7), torch.tensor([0.1, 0.5, 0.2, 0.9])])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("time", ["none", "concat", "bias"])
def test_convolutions_see_time_and_context(float64, time, size, t):
    layer, h, c = TimedConv(2, 5, size, time, context=3), torch.randn(4, 2, 6, 7), torch.randn(4, 3)
    t = t.double().reshape(-1, 1, 1, 1)
    weight, joined = layer.weight, h
    if time == "concat":
        weight, joined = torch.cat([weight, layer.time], 1), torch.cat([h, t.expand(4, 1, 6, 7)], 1)
    expected = F.conv2d(joined, weight, layer.bias, padding=size // 2) + (c @ layer.context.T)[..., None, None]
    expected = expected + t * layer.time[:, None, None] if time == "bias" else expected
    torch.testing.assert_close(layer(t.flatten() if t.numel() > 1 else t.squeeze(), h, c), expected)
