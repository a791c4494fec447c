"""Fields of images against torch's own layers and against the Jacobian."""

import pytest
import torch
from fields import jacobians, wild
from torch.nn import functional as F

from anode import ConvField, ConvStackField, InputError, NormConvField, ODEBlock, Solver, UNetField

T = torch.tensor(0.7)
FIELDS = {
    "conv": lambda context=0, time="bias": ConvField(2, 4, "tanh", time, context),
    "conv stack": lambda context=0, time="concat": ConvStackField(2, (4, 4), "softplus", time, context),
    "norm-conv": lambda time="concat": NormConvField(2, time),
    "U-Net": lambda context=0: UNetField(2, (4, 8), context),
}


def with_time(x, t):
    return torch.cat([x, t * torch.ones_like(x[:, :1])], 1)


class TestEveryField:
    @pytest.mark.parametrize("name", FIELDS)
    @pytest.mark.parametrize("context", [0, 3])
    def test_times_and_contexts_of_samples_equal_one_sample_at_a_time(self, float64, name, context):
        if context and name == "norm-conv":
            pytest.skip("it takes no context")
        field = wild(FIELDS[name](context=context) if context else FIELDS[name]()).double()
        t, x, c = torch.rand(4), torch.randn(4, 2, 4, 4), torch.randn(4, 3) if context else None
        singles = [field(t[i], x[i : i + 1], None if c is None else c[i : i + 1]) for i in range(4)]
        torch.testing.assert_close(field(t, x, c), torch.cat(singles))
        assert not torch.allclose(field(t, x, c), field(torch.zeros(4), x, c))
        assert c is None or not torch.allclose(field(t, x, c), field(t, x, c + 1))

    @pytest.mark.parametrize("time", ["none", "concat", "bias"])
    @pytest.mark.parametrize("name", ["conv", "conv stack", "norm-conv"])
    def test_kinds_of_time(self, float64, name, time):
        field, x = FIELDS[name](time=time), torch.randn(4, 2, 5, 5)
        assert torch.equal(field(T, x), field(torch.tensor(0.1), x)) == (time == "none")
        each = torch.full((4,), 0.7)
        torch.testing.assert_close(field(each, x), field(T, x))

    @pytest.mark.parametrize("make", [ConvField, ConvStackField, UNetField])
    def test_zero_init_is_the_zero_field(self, make):
        assert not make(2, context=1, zero_init=True)(T, torch.randn(3, 2, 4, 4), torch.randn(3, 1)).any()


class TestConvField:
    def test_concatenated_time_is_a_channel_of_every_convolution(self, float64):
        field = ConvField(3, filters=5, time="concat")
        x = h = torch.randn(4, 3, 6, 7)
        for i, layer in enumerate(field.layers):
            h = F.conv2d(with_time(h, T), torch.cat([layer.weight, layer.time], 1), layer.bias, padding=layer.padding)
            h = F.relu(h) if i < 2 else h
        torch.testing.assert_close(field(T, x), h)

    @pytest.mark.parametrize("time", ["none", "concat", "bias"])
    @pytest.mark.parametrize("activation", ["tanh", "softplus", "relu", "silu"])
    @pytest.mark.parametrize("context", [0, 2])
    def test_closed_form_divergence_is_the_trace_of_the_jacobian(self, float64, time, activation, context):
        field = wild(ConvField(2, 5, activation, time, context))
        x, c = torch.randn(4, 2, 3, 5), torch.randn(4, context) if context else None
        for t in (torch.tensor(0.3), torch.rand(4)):
            velocity, divergence = field.velocity_and_divergence(t, x, c)
            torch.testing.assert_close(velocity, field(t, x, c))
            torch.testing.assert_close(divergence, jacobians(field, t, x, c).diagonal(dim1=1, dim2=2).sum(1))

    @pytest.mark.parametrize("gradient", ["direct", "adjoint"])
    def test_gradients_of_a_solve_equal_finite_differences(self, float64, gradient):
        field = ConvField(2, filters=3, activation="tanh", time="concat")
        block = ODEBlock(field, Solver(rtol=1e-8, atol=1e-8, gradient=gradient))
        values = [torch.randn(2, 2, 4, 4, requires_grad=True), *field.parameters()]
        gradients = torch.autograd.grad(block(values[0]).sin().sum(), values)
        directions = [torch.randn_like(value) for value in values]
        slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))

        @torch.no_grad()
        def move(step):
            for value, d in zip(values, directions, strict=True):
                value += step * d
            return block(values[0]).sin().sum()

        below, above = move(-1e-5), move(2e-5)
        torch.testing.assert_close((above - below) / 2e-5, slope, rtol=1e-5, atol=1e-6)

    def test_states_stay_in_float32_if_layers_are_in_bfloat16(self):
        block, x = ODEBlock(ConvField(2, filters=8)), torch.rand(4, 2, 6, 6)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = block(x)
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, block(x), rtol=0.02, atol=0.02)
        assert not torch.equal(rounded, block(x))


def test_norm_conv_field_is_the_published_network(float64):
    field = NormConvField(4, time="concat")
    with torch.no_grad():
        for p in field.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x = h = torch.randn(3, 4, 5, 5)
    for norm, conv in zip(field.norms, field.convs, strict=False):
        h = F.relu(F.group_norm(h, 4, norm.weight, norm.bias))
        h = F.conv2d(with_time(h, T), torch.cat([conv.weight, conv.time], 1), conv.bias, padding=1)
    norm = field.norms[2]
    torch.testing.assert_close(field(T, x), F.group_norm(h, 4, norm.weight, norm.bias))


@pytest.mark.parametrize("channels", [64, 69, 6])
def test_groups_divide_any_number_of_channels(channels):
    assert NormConvField(channels)(T, torch.randn(2, channels, 3, 3)).shape == (2, channels, 3, 3)


@pytest.mark.parametrize("filters", [(2,), (4,), (6, 3), (8, 8), (5, 5)])
def test_u_nets_of_few_filters_see_time(filters):
    """The norm of a channel alone would remove it."""
    field, x = UNetField(1, filters), torch.randn(3, 1, 4, 4)
    assert (field(torch.tensor(0.9), x) - field(torch.tensor(0.1), x)).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ConvField(0), "channels=0"),
        (lambda: ConvField(1, context=-1), "context=-1"),
        (lambda: ConvField(2, filters=0), "filters=0"),
        (lambda: ConvField(2, time="squash"), "time='squash' is unknown; choose one of none, concat, bias"),
        (lambda: ConvField(2, activation="sign"), "activation='sign'"),
        (lambda: ConvField(2)(T, torch.randn(4, 3, 8, 8)), "(4, 3, 8, 8) does not fit"),
        (lambda: ConvField(2)(T, torch.randn(4, 2)), "(4, 2) does not fit"),
        (lambda: ConvField(2)(T, torch.randn(4, 2, 3, 3), torch.ones(4, 1)), "context=0"),
        (lambda: ConvField(1, context=2)(T, torch.randn(4, 1, 8, 8)), "c of shape None"),
        (lambda: ConvField(1, context=2)(T, torch.randn(4, 1, 8, 8), torch.ones(4, 2, 8, 8)), "context=2"),
        (lambda: NormConvField(0), "channels=0"),
        (lambda: NormConvField(2)(T, torch.randn(4, 3, 8, 8)), "does not fit"),
        (lambda: UNetField(0), "channels=0"),
        (lambda: UNetField(1, ()), "filters="),
        (lambda: UNetField(1, (8, 8, 8))(T, torch.randn(1, 1, 6, 6)), "6x6 do not halve 2 times"),
        (lambda: UNetField(1)(T, torch.randn(1, 2, 4, 4)), "channels=1"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(InputError) as refusal:
        make()
    assert words in str(refusal.value)
