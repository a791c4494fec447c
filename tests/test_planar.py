"""Planar layers and the planar field against Jacobians, closed forms, quadrature and their own samplers."""

import math

import pytest
import torch

from anode import InputError, Solver
from cnf import Compose, Continuous, Flow, Normal, Planar, PlanarField, Standardize

T = torch.tensor(0.3)


def planar(dim, layers, std=1.0):
    """Layers far from the identity."""
    transform = Planar(dim, layers)
    for parameter in transform.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return transform


def field_far_from_zero(dim, units):
    field = PlanarField(dim, units)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter)
    torch.nn.init.normal_(field.u, std=1 / math.sqrt(units))
    return field


def log_det_by_brute_force(map_, x):
    jacobians = [torch.autograd.functional.jacobian(lambda y: map_(y[None]).point[0], point) for point in x]
    return torch.linalg.slogdet(torch.stack(jacobians)).logabsdet


@torch.no_grad()
def on_a_grid(flow, half, n):
    """Points of a square, and their masses by the midpoint rule."""
    middle = (torch.arange(n) + 0.5) / n * 2 * half - half
    points = torch.cartesian_prod(middle, middle)
    return points, flow.log_prob(points).exp() * (2 * half / n) ** 2


@torch.no_grad()
def sampler_agrees(flow, points, masses, n=40_000):
    """Whether means of bounded functions by samples are those by quadrature, within 4 standard errors."""

    def functions(x):
        return torch.cat([torch.tanh(x), torch.cos(2 * x), torch.sin(x.sum(1, keepdim=True))], 1)

    seen, wanted = functions(flow.sample(n)), masses @ functions(points)
    return ((seen.mean(0) - wanted).abs() < 4 * seen.std(0) / n**0.5).all()


@pytest.mark.parametrize("std", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("layers", [1, 4])
def test_log_det_is_that_of_the_jacobian(float64, layers, std):
    transform = planar(3, layers, std)
    if std == 3:
        along = (transform.w * transform.u).sum(1, keepdim=True)
        transform.u.data *= -along.sign()  # w'u < 0; below -1 a layer would fold without the constraint
        assert (along.abs() > 1).any()
    z = 2 * torch.randn(20, 3)
    log_det = transform.inverse(z).log_det
    torch.testing.assert_close(log_det, log_det_by_brute_force(transform.inverse, z), rtol=0, atol=1e-8)


@torch.no_grad()
def test_far_from_the_hinge_a_layer_translates_by_the_constrained_u(float64):
    """Where tanh = ±1 a layer adds û: u but for a part along w, such that w'û = -1 + log(1 + e^{w'u})."""
    transform = planar(4, 1, std=2.0)
    w, u = transform.w[0], transform.u[0]
    for sign in (-1, 1):
        z = sign * 1e3 * w[None]
        moved = sign * (transform.inverse(z).point - z)[0]
        assert (w @ moved).item() == pytest.approx(math.log1p(math.exp(w @ u)) - 1, abs=1e-9)
        across = moved - u - w * (w @ (moved - u)) / (w @ w)
        torch.testing.assert_close(across, torch.zeros(4), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("layers", "std"), [(1, 1.0), (4, 0.5), (2, 1.5)])
def test_gradients_equal_finite_differences(float64, layers, std):
    transform = planar(2, layers, std)
    inputs = (torch.randn(3, 2, requires_grad=True), *transform.parameters())
    assert torch.autograd.gradcheck(lambda z, *_: tuple(transform.inverse(z))[:2], inputs)


@torch.no_grad()
def test_samples_have_their_log_densities(float64):
    """Importance sampling by the flow integrates a Gaussian to 1; it would not with another log-density."""
    flow = Flow(Compose([Standardize((2,)).fit(3 * torch.randn(100, 2)), planar(2, 4, std=0.7)]), Normal((2,)))
    x, log_q = flow.rsample_and_log_prob(40_000)
    weights = (torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1) - log_q).exp()
    assert abs(weights.mean() - 1) < 4 * weights.std() / 200
    with pytest.raises(NotImplementedError, match="base to data only"):
        flow.log_prob(x)


@pytest.mark.parametrize("dim", [1, 2, 50])
def test_layers_start_near_the_identity_and_learn(dim):
    transform = Planar(dim, 3)
    z = torch.randn(100, dim)
    x, log_det = transform.inverse(z)[:2]
    assert 0 < (x - z).abs().max() < 1
    assert 0 < log_det.abs().max() < 1
    (x.square().sum() - log_det.sum()).backward()
    assert all((parameter.grad != 0).all() for parameter in transform.parameters())


@pytest.mark.parametrize("t", [torch.tensor(0.3), torch.rand(5)], ids=["one time", "a time per sample"])
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 2)])
def test_divergence_of_the_field_is_the_trace_of_the_jacobian(float64, shape, t):
    t = t.double()
    size = math.prod(shape)
    field = field_far_from_zero(size, 7)
    x = torch.randn(5, *shape)
    velocity, divergence = field.velocity_and_divergence(t, x)
    jacobian = torch.autograd.functional.jacobian(lambda x: field(t, x).sum(0), x)  # (*S, B, *S)
    traces = jacobian.reshape(size, 5, size).diagonal(dim1=0, dim2=2).sum(1)
    torch.testing.assert_close(divergence, traces, rtol=0, atol=1e-12)
    torch.testing.assert_close(velocity, field(t, x))
    assert velocity.shape == x.shape


def hold_gates_open(field):
    """Gates sigma(50) = 1 at all times."""
    for parameter in field.gates.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(field.gates[-2].bias, 50.0)
    return field


def written_by_hand():
    """The planar field dx/dt = (2, 1) tanh(3 x_0 - x_1 + 1/2)."""
    field = hold_gates_open(PlanarField(2, units=1))
    for parameter, value in ((field.w, [[3.0, -1.0]]), (field.b, [0.5]), (field.u, [[2.0, 1.0]])):
        parameter.data = torch.tensor(value)
    return field


def test_the_flow_of_one_open_unit_is_known(float64):
    """Along it a = w'x + b obeys da/dt = w'u tanh(a), hence sinh a(t) = e^{w'u t} sinh a(0); x moves along u."""
    field = written_by_hand()
    z = torch.randn(30, 2) / 3
    by_hand = torch.outer(torch.tanh(3 * z[:, 0] - z[:, 1] + 0.5), torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(field(T, z), by_hand, rtol=0, atol=1e-14)
    w, u, speed = torch.tensor([3.0, -1.0]), torch.tensor([2.0, 1.0]), 5.0
    start = z @ w + 0.5
    end = torch.asinh(math.exp(speed) * torch.sinh(start))
    x, log_det = Continuous(field, Solver(rtol=1e-10, atol=1e-10)).inverse(z)[:2]
    torch.testing.assert_close(x, z + torch.outer((end - start) / speed, u), rtol=0, atol=1e-7)
    torch.testing.assert_close(log_det, speed + torch.log(torch.cosh(start) / torch.cosh(end)), rtol=0, atol=1e-7)


def test_gates_stay_between_zero_and_one(float64):
    """A closed unit stands still; none moves faster than |u|, nor backwards."""
    field = field_far_from_zero(2, 1)
    times = torch.linspace(-5, 5, 100)
    ratio = field(times, torch.ones(100, 2)) / hold_gates_open(field)(times, torch.ones(100, 2))
    assert ((ratio > 0) & (ratio < 1)).all()
    assert ratio.max() > ratio.min()


@pytest.mark.parametrize("units", [1, 16, 1024])
def test_the_field_starts_small_and_learns(units):
    field = PlanarField(2, units)
    x = torch.randn(200, 2)
    velocity, divergence = field.velocity_and_divergence(T, x)
    assert 0 < velocity.abs().max() < 0.5
    assert divergence.abs().max() < 0.5
    (velocity.square().sum() + divergence.sum()).backward()
    assert all((parameter.grad != 0).all() for parameter in field.parameters())


def test_a_continuous_planar_density_integrates_to_one_and_agrees_with_its_sampler():
    flow = Flow(Continuous(field_far_from_zero(2, 16)), Normal((2,)))
    points, masses = on_a_grid(flow, half=10.0, n=200)
    assert masses.sum().item() == pytest.approx(1, abs=2e-3)
    assert sampler_agrees(flow, points, masses)
    assert flow.kind == "exact"


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Planar(0), "dim=0"),
        (lambda: Planar(2, layers=0), "layers=0"),
        (lambda: Planar(2).inverse(torch.randn(4, 3)), r"x of shape \(4, 3\) .* pass \(B, 2\)"),
        (lambda: Planar(2).inverse(torch.randn(4, 2), torch.randn(4, 1)), r"c of shape \(4, 1\)"),
        (lambda: PlanarField(0), "dim=0"),
        (lambda: PlanarField(2, units=0), "units=0"),
        (lambda: PlanarField(2, gate=0), "gate=0"),
        (lambda: PlanarField(2)(T, torch.randn(4, 3)), r"x of shape \(4, 3\) .* dim=2"),
        (lambda: PlanarField(2)(T, torch.randn(4, 2), torch.randn(4, 1)), "context=0"),
    ],
)
def test_bad_input_is_named(make, names):
    with pytest.raises(InputError, match=names):
        make()
