"""Fields against torch's own layers and against the Jacobian."""

import pytest
import torch
from fields import mlp_fields
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anode import InputError, MLPField
from anode.activations import activation


def context_of(field, batch):
    return torch.randn(batch, field.context) if field.context else None


@pytest.mark.parametrize("field", list(mlp_fields()), ids=lambda f: f"{len(f.layers) - 1}-{f.time}-{f.context}")
def test_closed_form_divergence_is_the_trace_of_the_jacobian(float64, field):
    field = field.double()
    x, c, t = torch.randn(5, 3), context_of(field, 5), torch.tensor(0.3)
    result = field.velocity_and_divergence(t, x, c)
    if len(field.layers) > 3:
        assert result is None
        return
    velocity, divergence = result
    jacobian = torch.autograd.functional.jacobian(lambda x: field(t, x, c).sum(0), x).transpose(0, 1)
    torch.testing.assert_close(velocity, field(t, x, c))
    torch.testing.assert_close(divergence, jacobian.diagonal(dim1=1, dim2=2).sum(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["tanh", "softplus", "relu", "silu"])
def test_slopes_are_derivatives(float64, name):
    a = torch.linspace(-9, 9, 200, requires_grad=True)
    h, slope = activation(name).with_slope(a)
    torch.testing.assert_close(h, activation(name).value(a))
    torch.testing.assert_close(slope, torch.autograd.grad(h.sum(), a)[0], rtol=1e-9, atol=1e-9)


def test_concatenated_time_is_an_input_of_the_first_layer(float64):
    field = MLPField(2, (6, 5), time="concat")
    layers = [nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)]
    layers[0].weight.data = torch.cat([field.layers[0].weight, field.layers[0].time[:, None]], 1).detach()
    for mine, theirs in zip(field.layers, layers, strict=True):
        theirs.bias.data = mine.bias.data
    for mine, theirs in zip(field.layers[1:], layers[1:], strict=True):
        theirs.weight.data = mine.weight.data
    x, t = torch.randn(4, 2), torch.tensor(0.7)
    joined = torch.cat([x, t.expand(4, 1)], 1)
    expected = layers[2](torch.tanh(layers[1](torch.tanh(layers[0](joined)))))
    torch.testing.assert_close(field(t, x), expected)


@pytest.mark.parametrize("time", ["none", "concat", "bias"])
def test_time_per_sample_is_the_same_as_one_by_one(float64, time):
    field = MLPField(2, (6,), time=time, context=3)
    x, c, t = torch.randn(4, 2), torch.randn(4, 3), torch.rand(4)
    alone = torch.cat([field(t[i], x[i : i + 1], c[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(field(t, x, c), alone)


def test_parameter_counts_match_the_papers_networks():
    """Time enters the first layer as one more input: (d + 1) h + h, h h + h, h d + d."""
    field = MLPField(7, (32, 32), "relu", time="concat")
    assert sum(p.numel() for p in field.parameters()) == (8 * 32 + 32) + (32 * 32 + 32) + (32 * 7 + 7)


def test_zero_init_is_the_zero_field():
    field = MLPField(3, context=2, zero_init=True)
    x = torch.randn(5, 3)
    assert (field(torch.tensor(0.5), x, torch.randn(5, 2)) == 0).all()


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    batch=st.integers(1, 5),
    hidden=st.lists(st.integers(1, 6), max_size=3),
    double=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_shape_and_dtype_stay(shape, batch, hidden, double):
    dim = torch.Size(shape).numel()
    dtype = torch.float64 if double else torch.float32
    field = MLPField(dim, hidden).to(dtype)
    velocity = field(torch.tensor(0.1), torch.randn(batch, *shape, dtype=dtype))
    assert velocity.shape == (batch, *shape)
    assert velocity.dtype == dtype


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: MLPField(2, activation="gelu"), "gelu"),
        (lambda: MLPField(2, time="fourier"), "fourier"),
        (lambda: MLPField(0), "dim=0"),
        (lambda: MLPField(2, (8, 0)), "hidden"),
        (lambda: MLPField(2)(torch.tensor(0.0), torch.randn(4, 3)), "dim=2"),
        (lambda: MLPField(2)(torch.tensor(0.0), torch.randn(4, 2), torch.randn(4, 1)), "context=0"),
        (lambda: MLPField(2, context=3)(torch.tensor(0.0), torch.randn(4, 2)), "context=3"),
        (lambda: MLPField(2, context=3)(torch.tensor(0.0), torch.randn(4, 2), torch.randn(5, 3)), r"\(4, 3\)"),
    ],
)
def test_bad_input_is_named(make, names):
    with pytest.raises(InputError, match=names):
        make()
