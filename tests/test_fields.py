"""Perceptrons and wrapped networks as fields, against torch's own layers and against the Jacobian."""

import copy
import functools
import math

import pytest
import torch
from fields import jacobians, mlp_fields, wild
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from anode import (
    Augment,
    ClassifierConfig,
    ConvField,
    ConvStackField,
    Field,
    InputError,
    MLPField,
    ODEBlock,
    Solver,
    classifier_model,
    count_evals,
)

TIMES = ("none", "concat", "bias", "squash")


@pytest.mark.parametrize("field", list(mlp_fields()), ids=lambda f: f"{len(f.layers) - 1}-{f.time}-{f.context}")
def test_closed_form_divergence_is_the_trace_of_the_jacobian(float64, field):
    field = field.double()
    x, c, t = torch.randn(5, 3), torch.randn(5, field.context) if field.context else None, torch.tensor(0.3)
    velocity, divergence = field.velocity_and_divergence(t, x, c)
    torch.testing.assert_close(velocity, field(t, x, c))
    trace = jacobians(field, t, x, c).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(divergence, trace, rtol=0, atol=1e-12)


@pytest.mark.parametrize("field", list(mlp_fields()), ids=lambda f: f"{len(f.layers) - 1}-{f.time}-{f.context}")
def test_closed_form_jacobian_is_that_of_automatic_differentiation(float64, field):
    field = field.double()
    x, c, t = torch.randn(5, 3), torch.randn(5, field.context) if field.context else None, torch.tensor(0.3)
    velocity, jacobian = field.velocity_and_jacobian(t, x, c)
    torch.testing.assert_close(velocity, field(t, x, c))
    torch.testing.assert_close(jacobian, jacobians(field, t, x, c), rtol=0, atol=1e-12)


def test_activations_follow_the_layers_and_the_last_serves_the_rest(float64):
    field = MLPField(2, (6, 5, 4), ("tanh", "silu"), time="none")
    first, second, third, last = [functools.partial(F.linear, weight=f.weight, bias=f.bias) for f in field.layers]
    x = torch.randn(4, 2)
    expected = last(F.silu(third(F.silu(second(torch.tanh(first(x)))))))
    torch.testing.assert_close(field(torch.tensor(0.7), x), expected)


def test_concatenated_time_is_an_input_of_the_first_layer(float64):
    field = MLPField(2, (6, 5), time="concat")
    first, second, last = field.layers
    x, t = torch.randn(4, 2), torch.tensor(0.7)
    joined = F.linear(torch.cat([x, t.expand(4, 1)], 1), torch.cat([first.weight, first.time[:, None]], 1), first.bias)
    h = torch.tanh(F.linear(torch.tanh(joined), second.weight, second.bias))
    torch.testing.assert_close(field(t, x), F.linear(h, last.weight, last.bias))


@pytest.mark.parametrize("hidden", [(), (6,), (6, 5), (6, 5, 4)])
@pytest.mark.parametrize("time", TIMES)
def test_time_per_sample_equals_one_sample_at_a_time(float64, time, hidden):
    field = wild(MLPField(2, hidden, time=time, context=3))
    x, c, t = torch.randn(4, 2), torch.randn(4, 3), torch.rand(4)
    singles = [(t[i], x[i : i + 1], c[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(field(t, x, c), torch.cat([field(*single) for single in singles]))
    for rule in (field.velocity_and_divergence, field.velocity_and_jacobian):
        closed = rule(t, x, c)
        if time == "squash":
            assert closed is None
        else:
            torch.testing.assert_close(closed[1], torch.cat([rule(*single)[1] for single in singles]))


def test_parameter_counts_match_the_networks_of_the_anode_paper():
    """Time enters the first layer as one more input: (d + 1) h + h, h h + h, h d + d."""
    field = MLPField(7, (32, 32), "relu", time="concat")
    assert sum(p.numel() for p in field.parameters()) == (8 * 32 + 32) + (32 * 32 + 32) + (32 * 7 + 7)


@pytest.mark.parametrize(
    ("dim", "hidden", "blocks", "count"),
    [
        (6, (60, 60, 60), 5, 43_325),  # POWER
        (8, (160, 160, 160), 5, 278_565),  # GAS
        (21, (210, 210), 10, 546_850),  # HEPMASS
        (43, (860, 860), 1, 820_613),  # MINIBOONE
        (63, (1260, 1260, 1260), 2, 6_698_666),  # BSDS300
    ],
)
def test_parameter_counts_match_ffjord(dim, hidden, blocks, count):
    """The published flows have one more parameter a block, its duration."""
    with torch.device("meta"):
        field = MLPField(dim, hidden, time="squash")
    assert blocks * (1 + sum(p.numel() for p in field.parameters())) == count


@pytest.mark.parametrize("time", TIMES)
def test_state_dict_names(time):
    """Stored models are read by these names."""
    names = {"layers.0.weight", "layers.0.bias", "layers.0.context"}
    names |= {"layers.0.time"} if time != "none" else set()
    names |= {"layers.0.gate_time", "layers.0.gate_bias"} if time == "squash" else set()
    assert MLPField(3, (), time=time, context=2).state_dict().keys() == names


@pytest.mark.parametrize("t", [torch.tensor(0.5), torch.linspace(0, 1, 5)], ids=["solve", "time-per-sample"])
@pytest.mark.parametrize("time", TIMES)
def test_zero_init_is_the_zero_field(time, t):
    x, c = torch.randn(5, 3), torch.randn(5, 2)
    assert (MLPField(3, time=time, context=2, zero_init=True)(t, x, c) == 0).all()


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    batch=st.integers(1, 5),
    hidden=st.lists(st.integers(1, 6), max_size=3),
    double=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_shape_and_dtype_stay(shape, batch, hidden, double):
    dtype = torch.float64 if double else torch.float32
    field = MLPField(torch.Size(shape).numel(), hidden).to(dtype)
    velocity = field(torch.tensor(0.1), torch.randn(batch, *shape, dtype=dtype))
    assert velocity.shape == (batch, *shape)
    assert velocity.dtype == dtype


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: MLPField(2, activation="gelu"), "activation='gelu' is unknown; choose one of tanh, softplus"),
        (lambda: MLPField(2, activation=("tanh", "gelu")), "gelu"),
        (lambda: MLPField(2, activation=()), "activation=\\(\\)"),
        (lambda: MLPField(2, time="fourier"), "time='fourier' is unknown; choose one of none, concat, bias, squash"),
        (lambda: MLPField(0), "dim=0"),
        (lambda: MLPField(2, (8, 0)), "hidden"),
        (lambda: MLPField(2, "64"), "hidden='64' must be positive whole numbers, such as 64"),
        (lambda: MLPField("2"), "dim='2'"),
        (lambda: MLPField(2, activation=nn.Tanh()), r"activation=Tanh\(\) is unknown"),
        (lambda: MLPField(2)(torch.tensor(0.0), torch.randn(4, 3)), "dim=2"),
        (lambda: MLPField(2)(torch.tensor(0.0), torch.randn(4, 2), torch.randn(4, 1)), "context=0"),
        (lambda: MLPField(2, context=3)(torch.tensor(0.0), torch.randn(4, 2)), "context=3"),
        (lambda: MLPField(2, context=3)(torch.tensor(0.0), torch.randn(4, 2), torch.randn(5, 3)), r"\(4, 3\)"),
        (lambda: Field.wrap(lambda: 0), r"arguments \(\): pass f\(t, x\), f\(x\)"),
        (lambda: Field.wrap(lambda t, x, c, d: x), "arguments"),
        (lambda: Field.wrap(lambda x, *, scale: x), "arguments"),
        (lambda: Field.wrap(max), "signature: pass a module or lambda"),
        (lambda: Field.wrap(lambda x, t: x), r"arguments \(x, t\)"),
        (lambda: Field.wrap(lambda x, t=0.0: x), r"arguments \(x, t=0.0\)"),
        (lambda: Field.wrap(nn.Linear), "arguments"),
        (lambda: Field.wrap(nn.Tanh())(torch.tensor(0.0), torch.randn(4, 2), torch.randn(4, 1)), "context=0"),
    ],
)
def test_bad_input_is_named(make, names):
    with pytest.raises(InputError, match=names):
        make()


def test_one_width_is_one_layer():
    torch.manual_seed(0)
    fields = []
    for hidden in (16, (16,)):
        torch.manual_seed(0)
        fields.append(MLPField(2, hidden))
    x = torch.randn(4, 2)
    assert torch.equal(*(field(torch.tensor(0.5), x) for field in fields))
    assert classifier_model((2,), 1, hidden=16).config.hidden == (16,)
    assert len(ConvStackField(3, 8).layers) == 2
    assert ClassifierConfig(hidden=[8, 8]).hidden == (8, 8)


class TestCompile:
    @pytest.mark.parametrize("field", [MLPField(3, (4, 4)), MLPField(3, (4, 4, 4)), ConvField(3, 4)])
    def test_both_rules_are_compiled_and_agree(self, field, monkeypatch):
        compiled = []
        monkeypatch.setattr(torch, "compile", lambda f, *_, **__: (compiled.append(f.__name__), f)[1])
        x, t = torch.randn(5, 3, 4, 4) if isinstance(field, ConvField) else torch.randn(5, 3), torch.tensor(0.5)
        expected = field(t, x), *field.velocity_and_divergence(t, x)
        field.compile()
        torch.testing.assert_close((field(t, x), *field.velocity_and_divergence(t, x)), expected)
        assert compiled == ["_call_impl", "velocity_and_divergence"]

    def test_copies_have_weights_of_their_own(self):
        field = MLPField(3, (4, 4, 4))
        names = field.state_dict().keys()
        field.compile(backend="eager")
        t, x = torch.tensor(0.5), torch.randn(5, 3)
        before = field.velocity_and_divergence(t, x)
        other = copy.deepcopy(field).double()
        for weight in other.parameters():
            nn.init.zeros_(weight)
        assert other.state_dict().keys() == field.state_dict().keys() == names
        assert not any(part.any() for part in other.velocity_and_divergence(t.double(), x.double()))
        torch.testing.assert_close(field.velocity_and_divergence(t, x), before)


class TestWrap:
    """Any network as a field."""

    T, TIGHT = torch.tensor(0.5, dtype=torch.float64), Solver(rtol=1e-9, atol=1e-9)

    def test_arguments_decide_how_the_network_is_called(self):
        class Timed(nn.Module):
            def forward(self, t, x, scale=2.0):
                return scale * t * x

        x, c = torch.ones(4, 2), torch.full((4, 2), 3.0)
        assert torch.equal(Field.wrap(lambda x: 2 * x)(self.T, x), 2 * x)
        assert torch.equal(Field.wrap(lambda t, x: t * x)(self.T, x), 0.5 * x)
        assert torch.equal(Field.wrap(Timed())(self.T, x), x)
        assert torch.equal(Field.wrap(lambda t, x, c: t * c)(self.T, x, c), 0.5 * c)

    def test_a_field_without_a_context_is_a_field(self):
        class Decay(Field):
            def forward(self, t, x):
                return -t * x

            def velocity_and_divergence(self, t, x):
                return -t * x, -t.expand(len(x)) * x.shape[1]

        x, decay = torch.ones(4, 2), Decay()
        field = Field.wrap(decay)
        torch.testing.assert_close(field.velocity_and_divergence(self.T, x), (-0.5 * x, torch.full((4,), -1.0)))
        for solver in (Solver(), Solver(gradient="adjoint")):
            torch.testing.assert_close(ODEBlock(decay, solver)(x), x * math.exp(-0.5), rtol=1e-4, atol=1e-4)
        with pytest.raises(InputError, match="context=0"):
            ODEBlock(decay)(x, x)

    @pytest.mark.parametrize("got", [lambda x: (x, 0), lambda x: None, lambda x: x.detach().numpy()])
    def test_a_field_returns_the_velocity_alone(self, got):
        with pytest.raises(InputError, match=r"the field returns .*: return the velocity dx/dt alone"):
            ODEBlock(lambda t, x: got(x))(torch.ones(4, 2))

    def test_an_optional_context_is_passed_if_there_is_one(self):
        field = Field.wrap(lambda t, x, c=None, scale=2.0: scale * t * x if c is None else c)
        x, c = torch.ones(4, 2), torch.full((4, 2), 3.0)
        assert torch.equal(field(self.T, x), x)
        assert torch.equal(field(self.T, x, c), c)

    def test_methods_and_compiled_modules_give_their_parameters(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.rate = nn.Parameter(torch.tensor(2.0))

            def velocity(self, t, x):
                return self.rate * x

        net, linear = Net(), nn.Linear(2, 2)
        method, compiled = Field.wrap(net.velocity), Field.wrap(torch.compile(linear, backend="eager"))
        assert list(method.parameters()) == [net.rate]
        assert list(compiled.parameters()) == list(linear.parameters())
        ODEBlock(method)(torch.ones(1, 2)).sum().backward()
        assert net.rate.grad.item() == pytest.approx(2 * math.e**2, rel=1e-3)
        copied = copy.deepcopy(method)
        nn.init.zeros_(next(copied.parameters()))
        assert not copied(self.T, torch.ones(1, 2)).any()
        assert torch.equal(compiled(self.T, torch.ones(1, 2)), linear(torch.ones(1, 2)))
        field = torch.compile(MLPField(2), backend="eager")
        assert Field.wrap(field) is field

    def test_time_comes_in_the_type_of_the_state(self):
        joined = Field.wrap(lambda t, x: torch.cat([x[:, :1], t.expand(len(x), 1)], 1))
        assert joined(self.T, torch.ones(4, 2)).dtype == torch.float32

    def test_a_field_stays_itself(self):
        field = MLPField(2)
        assert Field.wrap(field) is field

    def test_a_module_gives_its_parameters_to_the_field(self, float64):
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        field = Field.wrap(net)
        assert list(field.parameters()) == list(net.parameters())
        assert field.velocity_and_divergence(self.T, torch.randn(4, 2)) is None

    @pytest.mark.parametrize("gradient", ["direct", "checkpoint", "adjoint"])
    def test_a_block_of_a_sequential_is_a_block_of_the_same_perceptron(self, float64, gradient):
        field = MLPField(3, (8,), time="none")
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
        net.load_state_dict(dict(zip(net.state_dict(), field.state_dict().values(), strict=True)))
        solver = Solver(rtol=1e-9, atol=1e-9, gradient=gradient)
        x, found = torch.randn(5, 2), []
        for each in (field, Field.wrap(net)):
            network = nn.Sequential(Augment(1), ODEBlock(each, solver))
            with count_evals(network) as evals:
                y = network(x)
                y.square().sum().backward()
            assert evals.forward > 0
            found.append([y, *(p.grad for p in each.parameters())])
        for own, wrapped in zip(*found, strict=True):
            torch.testing.assert_close(own, wrapped, rtol=1e-7, atol=1e-9)

    def test_a_function_has_a_flow_with_gradients(self, float64):
        """dx/dt = -2 t x has the flow x exp(-t^2)."""
        x = torch.randn(5, 2, requires_grad=True)
        y = ODEBlock(Field.wrap(lambda t, x: -2 * t * x), self.TIGHT)(x)
        factor = torch.tensor(-1.0).exp()
        torch.testing.assert_close(y, x * factor)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], factor.expand(5, 2))
