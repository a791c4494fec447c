"""Flows against closed forms, quadrature and their own samplers."""

import math

import numpy as np
import pytest
import torch
from fields import Linear
from scipy.stats import chi2

from anode import InputError, MLPField, Solver, count_evals
from cnf import Compose, Continuous, Density, Flow, Logit, MaximumLikelihood, Normal, Standardize, density_model
from train_flows.data import toy

TIGHT = Solver(rtol=1e-10, atol=1e-10)


def wild_flow(**options):
    """A flow far from the identity: an untrained field of large weights."""
    torch.manual_seed(3)
    flow = density_model((2,), hidden=(32, 32), **options)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.35)
    return flow


def gaussian(flow_matrix, shift):
    """The law of x = E z + s for standard normal z."""
    return torch.distributions.MultivariateNormal(shift, flow_matrix @ flow_matrix.T)


def test_linear_field_gives_the_gaussian_of_its_matrix_exponential(float64):
    field = Linear(torch.randn(3, 3), torch.randn(3))
    flow = Flow(Continuous(field, TIGHT), Normal((3,)))
    x = torch.randn(50, 3)
    shift = field.solution(torch.zeros(1, 3), 1.0)[0]
    matrix = (field.solution(torch.eye(3), 1.0) - shift).T
    expected = gaussian(matrix, shift).log_prob(x)
    torch.testing.assert_close(flow.log_prob(x), expected, rtol=0, atol=1e-8)


def test_constant_field_translates(float64):
    field = Linear(torch.zeros(2, 2), torch.tensor([3.0, -1.0]))
    flow = Flow(Continuous(field), Normal((2,)))
    x = torch.randn(20, 2)
    expected = Normal((2,)).log_prob(x - torch.tensor([3.0, -1.0]))
    torch.testing.assert_close(flow.log_prob(x), expected, rtol=0, atol=1e-10)


def test_normal_is_the_standard_normal(float64):
    z = torch.randn(7, 2, 3)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2))
    torch.testing.assert_close(Normal((2, 3)).log_prob(z), expected)
    z = Normal((2,)).sample(20_000)
    assert (z.mean(0).abs() < 5 / 20_000**0.5).all()
    assert ((z.T @ z / 20_000 - torch.eye(2)).abs() < 0.05).all()


def test_original_units_count(float64):
    """A flow of scaled data: density by the change of variables from the flow of standardised data."""
    x = torch.randn(1000, 2) * torch.tensor([100.0, 0.01]) + torch.tensor([5.0, -3.0])
    flow = wild_flow(data=x)
    standardize, ode = flow.transform.transforms
    inner = Flow(ode, flow.base)
    expected = inner.log_prob((x - standardize.mean) / standardize.scale) - math.log(100 * 0.01)
    assert (flow.log_prob(x) - expected).abs().max() < 0.1  # the sample's standard deviations are not quite 100, 0.01
    exact = inner.log_prob((x - standardize.mean) / standardize.scale) - standardize.scale.log().sum()
    torch.testing.assert_close(flow.log_prob(x), exact)


@torch.no_grad()
def integral(flow, half=9.0, n=300, c=None):
    """The integral of a 2-D density over a square, by the midpoint rule."""
    middle = (torch.arange(n) + 0.5) / n * 2 * half - half
    points = torch.cartesian_prod(middle, middle)
    each = None if c is None else c.expand(len(points), -1)
    return flow.log_prob(points, each).exp().double().sum().item() * (2 * half / n) ** 2


@torch.no_grad()
def sampler_agrees(flow, n=20_000, cells=12, c=None):
    """The p-value of a chi-square test: counts of samples in quantile cells against the integrated density."""
    samples = flow.sample(n, c)
    low, high = samples.quantile(0.005, 0), samples.quantile(0.995, 0)
    fine = 10
    axes = [torch.linspace(0, 1, cells * fine + 1)[:-1] + 0.5 / (cells * fine) for _ in range(2)]
    points = low + torch.cartesian_prod(*axes) * (high - low)
    each = None if c is None else c.expand(len(points), -1)
    area = ((high - low) / (cells * fine)).prod()
    mass = (flow.log_prob(points, each).exp() * area).reshape(cells, fine, cells, fine).sum((1, 3))
    inside = ((samples - low) / (high - low) * cells).floor().long()
    inside = inside[((inside >= 0) & (inside < cells)).all(1)]
    counts = torch.zeros(cells, cells).index_put_(tuple(inside.T), torch.tensor(1.0), accumulate=True)
    expected, counts = (mass * n).flatten().numpy(), counts.flatten().numpy()
    rare = expected < 10
    expected = np.append(expected[~rare], n - expected[~rare].sum())
    counts = np.append(counts[~rare], n - counts[~rare].sum())
    return chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1)


@pytest.mark.parametrize("time", ["none", "concat", "bias"])
def test_a_density_integrates_to_one_and_agrees_with_its_sampler(time):
    flow = wild_flow(time=time)
    assert integral(flow) == pytest.approx(1, abs=2e-3)
    assert sampler_agrees(flow) > 1e-3


def test_the_check_of_the_sampler_can_fail():
    flow, other = wild_flow(), wild_flow()
    with torch.no_grad():
        other.transform.transforms[1].field.layers[-1].bias.add_(0.1)
    other.sample = flow.sample
    assert sampler_agrees(other) < 1e-6


def test_conditional_densities_integrate_to_one_for_every_context():
    flow = wild_flow(context=2)
    contexts = torch.randn(2, 2)
    for c in contexts:
        assert integral(flow, c=c) == pytest.approx(1, abs=2e-3)
        assert sampler_agrees(flow, c=c) > 1e-3
    x = torch.randn(2, 2)
    assert not torch.allclose(flow.log_prob(x, contexts), flow.log_prob(x, contexts.flip(0)))


def test_sample_with_log_prob_is_the_density_of_the_sample(float64):
    flow = wild_flow(solver=TIGHT)
    x, log_p = flow.sample_with_log_prob(100)
    torch.testing.assert_close(log_p, flow.log_prob(x), rtol=1e-6, atol=1e-6)


def test_gradients_flow_through_samples_and_their_log_density():
    flow = wild_flow()
    x, log_p = flow.sample_with_log_prob(10)
    gradients = torch.autograd.grad(x.sum() + log_p.sum(), list(flow.parameters()))
    assert all(torch.isfinite(g).all() for g in gradients)
    assert not flow.sample(3).requires_grad


def test_one_context_for_all_or_one_for_each():
    flow = wild_flow(context=2)
    c = torch.randn(2)
    torch.manual_seed(1)
    one = flow.sample(5, c)
    torch.manual_seed(1)
    assert torch.equal(one, flow.sample(5, c.expand(5, 2)))


def test_encode_and_decode_are_inverse(float64):
    flow = wild_flow(solver=TIGHT)
    x = torch.randn(20, 2)
    torch.testing.assert_close(flow.decode(flow.encode(x)), x, rtol=1e-7, atol=1e-7)


def test_sampling_spares_the_divergence(monkeypatch):
    flow = wild_flow()
    monkeypatch.setattr("cnf.continuous.exact", None)
    flow.sample(3)
    flow.encode(torch.randn(3, 2))


def test_trajectory_runs_from_base_to_data(float64):
    x = torch.randn(500, 2) * 7 + 3
    flow = wild_flow(solver=TIGHT, data=x)
    z = flow.base.sample(10)
    path = flow.trajectory(z, [0.0, 0.5, 1.0])
    standardize = flow.transform.transforms[0]
    torch.testing.assert_close(path[0], standardize.decode(z))
    torch.testing.assert_close(path[-1], flow.decode(z), rtol=1e-7, atol=1e-7)


def test_parts_need_one_ode_next_to_the_base():
    flow = Flow(Compose([Continuous(MLPField(2)), Standardize((2,))]), Normal((2,)))
    with pytest.raises(InputError, match="Continuous"):
        flow.parts()


def test_hutchinson_flow_is_an_unbiased_estimate(float64):
    """For a field whose divergence is constant along x the log-density is estimated without bias: the mean meets it."""
    field = Linear(torch.randn(3, 3) / 2)
    exact = Flow(Continuous(field), Normal((3,)))
    estimate = Flow(Continuous(field, divergence="hutchinson", probes=2), Normal((3,)))
    assert (exact.kind, estimate.kind) == ("exact", "estimate")
    x = torch.randn(1, 3)
    draws = estimate.log_prob(x.expand(3000, 3))
    assert draws.std() > 0
    assert (draws.mean() - exact.log_prob(x)).abs() < 4 * draws.std() / 3000**0.5


@pytest.mark.parametrize("probes", [1, 3])
def test_noise_is_drawn_once_a_solve(probes, monkeypatch):
    drawn = []
    original = torch.Tensor.bernoulli_
    monkeypatch.setattr(torch.Tensor, "bernoulli_", lambda x, *a: (drawn.append(x.shape), original(x, *a))[1])
    flow = wild_flow(divergence="hutchinson", probes=probes)
    flow.log_prob(torch.randn(5, 2))
    assert drawn == [(probes, 5, 2)]


def test_with_solver_shares_parameters_and_leaves_the_model():
    flow = wild_flow()
    loose = flow.with_solver(Solver(rtol=1e-2, atol=1e-2))
    assert all(a is b for a, b in zip(flow.parameters(), loose.parameters(), strict=True))
    x = torch.randn(50, 2)
    with count_evals(flow) as many, count_evals(loose) as few:
        flow.log_prob(x)
        loose.log_prob(x)
    assert few.forward < many.forward
    assert flow.config["solver"]["rtol"] == 1e-5
    assert loose.config["solver"]["rtol"] == 1e-2


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
def test_gradients_of_the_likelihood_equal_finite_differences(float64, gradient):
    torch.manual_seed(5)
    solver = Solver(rtol=1e-10, atol=1e-10, gradient=gradient)
    flow = Flow(Continuous(MLPField(2, (6, 5), context=1), solver), Normal((2,)))
    x, c = torch.randn(3, 2, requires_grad=True), torch.randn(3, 1, requires_grad=True)
    gradients = torch.autograd.grad(flow.log_prob(x, c).sum(), [x, c, *flow.parameters()])
    for tensor, gradient_ in zip([x, c, *flow.parameters()], gradients, strict=True):
        direction = torch.randn_like(tensor)
        step = 1e-5
        with torch.no_grad():
            tensor.add_(step * direction)
            up = flow.log_prob(x, c).sum()
            tensor.sub_(2 * step * direction)
            down = flow.log_prob(x, c).sum()
            tensor.add_(step * direction)
        torch.testing.assert_close((gradient_ * direction).sum(), (up - down) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("x", "names"),
    [
        (torch.randn(4, 3), r"pass \(B, 2\)"),
        (torch.randn(2), r"pass \(B, 2\)"),
        (torch.ones(4, 2, dtype=torch.int64), "int64"),
        (torch.randn(4, 2, dtype=torch.float64), "float64"),
        (torch.tensor([[0.0, math.nan], [1.0, 2.0]]), "1 of 2"),
        (torch.tensor([[math.inf, 0.0]]), "not finite"),
    ],
)
def test_bad_input_is_named(x, names):
    with pytest.raises(InputError, match=names):
        wild_flow().log_prob(x)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda flow: flow.decode(torch.randn(4, 2, 1)), r"z of shape \(4, 2, 1\)"),
        (lambda flow: flow.decode(torch.randn(4, 2).double(), torch.randn(4, 1)), "z has dtype torch.float64"),
        (lambda flow: flow.trajectory(torch.randn(4, 3), [0, 1.0], torch.randn(4, 1)), r"z of shape \(4, 3\)"),
        (lambda flow: flow.log_prob(torch.randn(4, 2), torch.ones(4, 1, dtype=torch.int64)), "c has dtype torch.int64"),
        (lambda flow: flow.log_prob(torch.randn(4, 2), torch.full((4, 1), math.nan)), "c is not finite in 4 of 4"),
        (lambda flow: flow.log_prob(torch.randn(4, 2)), "context=1"),
        (lambda flow: flow.sample_with_log_prob(4, torch.randn(3, 1)), r"\(4, 1\)"),
        (lambda flow: flow.log_prob(torch.randn(4, 2), torch.randn(4)), r"c of shape \(4,\)"),
        (lambda flow: flow.sample(4, torch.tensor(1.0)), r"c of shape \(\)"),
        (lambda flow: flow.sample(-1, torch.randn(1)), "n=-1"),
    ],
)
def test_bad_points_and_contexts_are_named(call, names):
    with pytest.raises(InputError, match=names):
        call(wild_flow(context=1))


def test_nothing_in_nothing_out():
    flow = wild_flow()
    assert flow.log_prob(torch.zeros(0, 2)).shape == (0,)
    assert flow.sample(0).shape == (0, 2)


@pytest.mark.parametrize("name", ["moons", "8gaussians"])
def test_a_trained_density_integrates_to_one_and_agrees_with_its_sampler(name):
    x = torch.from_numpy(toy.sample(name, 4000))
    flow = density_model((2,), hidden=(32, 32), solver=Solver(rtol=1e-4, atol=1e-4), data=x)
    objective = MaximumLikelihood(flow)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    before = objective(x).item()
    for _ in range(60):
        optimizer.zero_grad()
        objective(x[torch.randint(len(x), (256,))]).backward()
        optimizer.step()
    assert objective(x).item() < before - 0.3
    flow = flow.with_solver(Solver())
    assert integral(flow) == pytest.approx(1, abs=2e-3)
    assert sampler_agrees(flow) > 1e-3


def test_a_flow_is_a_density():
    flow = Flow(Compose([Logit(), Continuous(MLPField(2))]), Normal((2,)))
    assert isinstance(flow, Density)
    assert torch.equal(flow.elbo(torch.full((2, 2), 0.3)), flow.log_prob(torch.full((2, 2), 0.3)))
