"""Fields against torch's own layers and against the Jacobian."""

import copy

import pytest
import torch
from fields import mlp_fields, wild
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from anode import ConvField, Duration, InputError, MLPField, Solver
from anode.activations import activation
from anode.tangents import plainly
from cnf import Compose, Continuous, Flow, Normal, exact
from cnf.divergence import exact_by_pullbacks

TIMES = ("none", "concat", "bias", "squash", "hyper")


def context_of(field, batch):
    return torch.randn(batch, field.context) if field.context else None


@pytest.mark.parametrize("field", list(mlp_fields()), ids=lambda f: f"{len(f.layers) - 1}-{f.time}-{f.context}")
def test_closed_form_divergence_is_the_trace_of_the_jacobian(float64, field):
    field = field.double()
    x, c, t = torch.randn(5, 3), context_of(field, 5), torch.tensor(0.3)
    velocity, divergence = field.velocity_and_divergence(t, x, c)
    jacobian = torch.autograd.functional.jacobian(lambda x: field(t, x, c).sum(0), x).transpose(0, 1)
    torch.testing.assert_close(velocity, field(t, x, c))
    torch.testing.assert_close(divergence, jacobian.diagonal(dim1=1, dim2=2).sum(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["tanh", "softplus", "relu", "silu"])
def test_slopes_are_derivatives(float64, name):
    a = torch.linspace(-9, 9, 200, requires_grad=True)
    h, slope = activation(name).with_slope(a)
    torch.testing.assert_close(h, activation(name).value(a))
    torch.testing.assert_close(slope, torch.autograd.grad(h.sum(), a, create_graph=True)[0], rtol=1e-9, atol=1e-9)
    curvature = activation(name).curvature(a, h, slope)
    if name == "relu":
        assert not curvature.any()
    else:
        torch.testing.assert_close(curvature, torch.autograd.grad(slope.sum(), a)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "reference"), [("tanh", torch.tanh), ("softplus", lambda a: torch.logaddexp(a, torch.zeros_like(a)))]
)
def test_activations_made_of_sigmoids_are_what_they_are_called(name, reference, dtype):
    a = torch.cat([torch.linspace(-60, 60, 1001), torch.tensor([0.0, -1e30, 1e30])]).to(dtype).requires_grad_()
    found, expected = activation(name).value(a), reference(a)
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)
    slopes = [torch.autograd.grad(h.sum(), a)[0] for h in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=0, atol=4 * torch.finfo(dtype).eps)


class TestTangents:
    """The rule of three hidden layers and more, which has a backward pass of its own."""

    @pytest.fixture(params=["concat", "bias", "squash"])
    def case(self, request, float64):
        """A field, and velocity and divergence as a function of everything they depend on."""
        context = 0 if request.param == "concat" else 2
        field = wild(MLPField(2, (4, 5, 3), ("tanh", "softplus", "silu"), request.param, context))
        names, values = zip(*field.named_parameters(), strict=True)

        def rates(x, c, *values):
            state = {f"field.{name}": value for name, value in zip(names, values, strict=True)}
            return functional_call(Rates(field), state, (torch.tensor(0.3), x, c if context else None))

        c = torch.randn(3, 2, requires_grad=context > 0)
        inputs = (torch.randn(3, 2, requires_grad=True), c)
        return field, rates, (*inputs, *(value.detach().clone().requires_grad_() for value in values))

    def test_gradients_equal_finite_differences(self, case):
        _, rates, inputs = case
        assert torch.autograd.gradcheck(rates, inputs, eps=1e-6, atol=1e-6)

    def test_gradients_of_gradients_do_too(self, case):
        _, rates, inputs = case
        assert torch.autograd.gradgradcheck(rates, inputs, eps=1e-6, atol=1e-6)

    def test_gradients_are_those_of_the_plain_rule(self, case, monkeypatch):
        _, rates, inputs = case
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        weights = torch.randn(3, 2), torch.randn(3)

        def gradients():
            return torch.autograd.grad(rates(*inputs), wanted, weights)

        fast = gradients()
        monkeypatch.setattr("anode.fields.with_tangents", plainly)
        for mine, plain in zip(fast, gradients(), strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-12)

    def test_derivatives_along_a_path_are_known(self, case):
        """By forward mode, as energies of the acceleration take."""
        field, _, (x, c, *_) = case
        dx, c = torch.randn(3, 2), c if field.context else None

        def at(s):
            return field.velocity_and_divergence(0.3 + s, x + s * dx, c)

        _, along = torch.func.jvp(at, (torch.tensor(0.0),), (torch.tensor(1.0),))
        step = torch.tensor(1e-5)
        for found, above, below in zip(along, at(step), at(-step), strict=True):
            torch.testing.assert_close(found, (above - below) / 2e-5, rtol=1e-6, atol=1e-6)


class Rates(nn.Module):
    def __init__(self, field):
        super().__init__()
        self.field = field

    def forward(self, t, x, c):
        return self.field.velocity_and_divergence(t, x, c)


@pytest.mark.parametrize("dim", [1, 9])
def test_divergence_of_deep_perceptrons_in_one_dimension_and_in_many(float64, dim):
    field = wild(MLPField(dim, (4, 5, 6, 3)))
    x, t = torch.randn(5, dim), torch.tensor(0.3)
    velocity, divergence = field.velocity_and_divergence(t, x)
    expected = exact_by_pullbacks(field, t, x)
    torch.testing.assert_close(velocity, expected.velocity)
    torch.testing.assert_close(divergence, expected.divergence)


def test_activations_follow_the_layers_and_the_last_serves_the_rest(float64):
    field = MLPField(2, (6, 5, 4), ("tanh", "silu"), time="none")
    first, second, third, last = [
        lambda h, layer=layer: F.linear(h, layer.weight, layer.bias) for layer in field.layers
    ]
    x = torch.randn(4, 2)
    expected = last(F.silu(third(F.silu(second(torch.tanh(first(x)))))))
    torch.testing.assert_close(field(torch.tensor(0.7), x), expected)


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


def test_squash_gates_and_shifts_linear_layers(float64):
    field = wild(MLPField(2, (6, 5), time="squash"))
    t, x = torch.tensor(0.7), torch.randn(4, 2)
    h = x
    for i, layer in enumerate(field.layers):
        linear, gate = nn.Linear(*layer.weight.T.shape), nn.Linear(1, len(layer.weight))
        shift = nn.Linear(1, len(layer.weight), bias=False)
        linear.weight.data, linear.bias.data = layer.weight.data, layer.bias.data
        gate.weight.data, gate.bias.data = layer.gate_time.data[:, None], layer.gate_bias.data
        shift.weight.data = layer.time.data[:, None]
        h = linear(h) * torch.sigmoid(gate(t.view(1, 1))) + shift(t.view(1, 1))
        h = torch.tanh(h) if i < 2 else h
    torch.testing.assert_close(field(t, x), h)


def test_hyper_makes_linear_layers_of_time(float64):
    field = wild(MLPField(2, (6, 5), time="hyper"))
    t, x = torch.tensor(0.7), torch.randn(4, 2)
    h = x
    for i, layer in enumerate(field.layers):
        n_out, n_in = layer.weight.shape
        net = nn.Linear(1, n_in * n_out + n_out)
        net.weight.data = torch.cat([layer.weight_time.data.flatten(), layer.time.data])[:, None]
        net.bias.data = torch.cat([layer.weight.data.flatten(), layer.bias.data])
        linear = nn.Linear(n_in, n_out)
        weight, bias = net(t.view(1)).split([n_in * n_out, n_out])
        linear.weight.data, linear.bias.data = weight.data.view(n_out, n_in), bias.data
        h = torch.tanh(linear(h)) if i < 2 else linear(h)
    torch.testing.assert_close(field(t, x), h)


def test_hyper_begins_as_linear_layers_that_do_not_change():
    field = MLPField(100, (), time="hyper")
    for t in torch.tensor([0.0, 0.4, 1.0]):
        weight, bias = field.layers[0].at(t, None)
        assert 0.099 < weight.abs().max() <= 0.1  # 1 / sqrt(100), as nn.Linear
        assert bias.abs().max() <= 0.1
        torch.testing.assert_close(weight.std().item(), 0.1 / 3**0.5, rtol=0.05, atol=0)
    x = torch.randn(5, 100)
    field(torch.tensor(0.5), x).square().sum().backward()
    assert all((parameter.grad != 0).all() for parameter in field.parameters())


def test_residual_subtracts_the_state(float64):
    plain, residual = wild(MLPField(6)), MLPField(6, residual=True)
    residual.load_state_dict(plain.state_dict())
    t, x = torch.tensor(0.3), torch.randn(4, 2, 3)
    torch.testing.assert_close(residual(t, x), plain(t, x) - x)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("hidden", [(), (6,), (6, 5), (6, 5, 4)])
@pytest.mark.parametrize("time", TIMES)
def test_time_per_sample_is_the_same_as_one_by_one(float64, time, hidden, residual):
    field = wild(MLPField(2, hidden, time=time, context=3, residual=residual))
    x, c, t = torch.randn(4, 2), torch.randn(4, 3), torch.rand(4)
    alone = torch.cat([field(t[i], x[i : i + 1], c[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(field(t, x, c), alone)


@pytest.mark.parametrize("time", TIMES)
def test_divergence_with_time_per_sample_is_exact_or_not_closed(float64, time):
    field = wild(MLPField(2, (6, 5), time=time, context=3))
    x, c, t = torch.randn(4, 2), torch.randn(4, 3), torch.rand(4)
    alone = torch.cat([field.velocity_and_divergence(t[i], x[i : i + 1], c[i : i + 1])[1] for i in range(4)])
    closed = field.velocity_and_divergence(t, x, c)
    assert (closed is None) == (time in ("squash", "hyper"))
    torch.testing.assert_close(exact(field, t, x, c).divergence, alone)


def test_parameter_counts_match_the_papers_networks():
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
    with torch.device("meta"):
        flows = nn.ModuleList(Duration(MLPField(dim, hidden, time="squash")) for _ in range(blocks))
    assert sum(p.numel() for p in flows.parameters()) == count


def test_stacked_blocks_of_ffjord_are_one_density(float64):
    """Two ODEs with learned durations: the log-density is that by the Jacobian, and sampling inverts it."""
    blocks = [Continuous(Duration(wild(MLPField(2, (8, 8, 8), time="squash")))) for _ in range(2)]
    flow = Flow(Compose([block.double() for block in blocks]), Normal((2,))).with_solver(Solver(rtol=1e-9, atol=1e-9))
    x = torch.randn(3, 2)
    z = flow.encode(x)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda y: flow.encode(y[None])[0], each) for each in x])
    expected = flow.base.log_prob(z) + torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(flow.log_prob(x), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(flow.decode(z), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("time", TIMES)
def test_state_names_its_parameters(time):
    """Stored models are read by these names."""
    names = {"layers.0.weight", "layers.0.bias", "layers.0.context"}
    names |= {"layers.0.time"} if time != "none" else set()
    names |= {"squash": {"layers.0.gate_time", "layers.0.gate_bias"}, "hyper": {"layers.0.weight_time"}}.get(
        time, set()
    )
    assert MLPField(3, (), time=time, context=2).state_dict().keys() == names


@pytest.mark.parametrize("each", [False, True], ids=["solve", "time-per-sample"])
@pytest.mark.parametrize("time", TIMES)
def test_zero_init_is_the_zero_field(time, each):
    x, c = torch.randn(5, 3), torch.randn(5, 2)
    t = torch.rand(5) if each else torch.tensor(0.5)
    assert (MLPField(3, time=time, context=2, zero_init=True)(t, x, c) == 0).all()
    assert (MLPField(3, time=time, context=2, zero_init=True, residual=True)(t, x, c) == -x).all()


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
        (lambda: MLPField(2, activation=("tanh", "gelu")), "gelu"),
        (lambda: MLPField(2, activation=()), "activation=\\(\\)"),
        (lambda: MLPField(2, time="fourier"), "fourier.*concat.*hyper"),
        (lambda: ConvField(2, time="squash"), "squash.*none, concat, bias"),
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


def test_copies_of_a_compiled_field_have_weights_of_their_own():
    field = MLPField(3, (4, 4, 4))
    field.compile(backend="eager")
    other = copy.deepcopy(field).double()
    for weight in other.parameters():
        torch.nn.init.zeros_(weight)
    t, x = torch.tensor(0.5, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    assert not any(part.any() for part in other.velocity_and_divergence(t, x))


def test_tangents_in_mixed_precision_have_gradients():
    field = MLPField(3, (4, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        velocity, divergence = field.velocity_and_divergence(torch.tensor(0.5), torch.randn(5, 3))
    (velocity.sum() + divergence.sum()).float().backward()
    assert all(torch.isfinite(p.grad).all() for p in field.parameters())


def test_gradients_of_gradients_where_little_is_trained(float64):
    field = MLPField(3, (4, 4, 4)).requires_grad_(False)
    bias = field.layers[-1].bias.requires_grad_()
    velocity, divergence = field.velocity_and_divergence(torch.tensor(0.5), torch.randn(5, 3))
    found = torch.autograd.grad(velocity.sum() + divergence.sum(), bias, create_graph=True)
    torch.testing.assert_close(found[0], torch.full_like(bias, 5.0))


def test_softplus_in_half_precision():
    a = torch.tensor([-8.0, 0.0, 8.0, 12.0, 18.0, 40.0])
    found = activation("softplus").value(a.half())
    torch.testing.assert_close(found.float(), torch.nn.functional.softplus(a), rtol=2e-3, atol=2e-3)
