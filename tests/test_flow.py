"""Flows against closed forms, quadrature and their own samplers."""

import math

import numpy as np
import pytest
import torch
from fields import Linear
from scipy.stats import chi2

from anode import Field, InputError, MLPField, Solver, SolverError, count_evals
from cnf import (
    Compose,
    Continuous,
    Flow,
    Logit,
    Mixture,
    Multiscale,
    Normal,
    Planar,
    SolveOptions,
    Squeeze,
    Standardize,
)

TIGHT = Solver(rtol=1e-10, atol=1e-10)
TIMES = [0.0, 0.3, 1.0]


def wild_flow(time="bias", context=0, data=None, **options):
    """A flow far from the identity: an untrained field with large weights."""
    torch.manual_seed(3)
    field = MLPField(2, (32, 32), time=time, context=context)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.35)
    scale = Standardize((2,)) if data is None else Standardize((2,)).fit(data)
    return Flow(Compose([scale, Continuous(field, **options)]), Normal((2,)))


def linear_flow(dim):
    """A flow of a linear field, its density at t = 1, and the density's matrix and shift as functions of time."""
    field = Linear(torch.randn(dim, dim), torch.randn(dim))

    def density(time):
        shift = field.solution(torch.zeros(1, dim), time)[0]
        matrix = (field.solution(torch.eye(dim), time) - shift).T
        return torch.distributions.MultivariateNormal(shift, matrix @ matrix.T)

    return Flow(Continuous(field, TIGHT), Normal((dim,))), density


class Growth(Field):
    """dx/dt = r x, of any shape."""

    def __init__(self, rate):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(rate))

    def forward(self, t, x, c=None):
        return self.rate * x


def growth(rate):
    return Continuous(Growth(rate), TIGHT)


def scales(first, second, third):
    """Images at two scales: ODEs with these rates before and after the squeeze, and at the smaller scale."""
    larger = Compose([growth(first), Squeeze(), growth(second)])
    return Flow(Multiscale([larger, growth(third)]), Normal((1, 4, 4)))


def test_linear_field_gives_the_gaussian_of_its_matrix_exponential(float64):
    flow, density = linear_flow(3)
    x = torch.randn(50, 3)
    torch.testing.assert_close(flow.log_prob(x), density(1.0).log_prob(x), rtol=0, atol=1e-8)
    assert torch.equal(flow.elbo(x).value, flow.log_prob(x))
    on_the_way = flow.elbo(x, options=SolveOptions(t_data=0.4)).value
    torch.testing.assert_close(on_the_way, density(0.4).log_prob(x), rtol=0, atol=1e-8)


def test_original_units_count(float64):
    x = torch.randn(1000, 2) * torch.tensor([100.0, 0.01]) + torch.tensor([5.0, -3.0])
    flow = wild_flow(data=x)
    standardize, ode = flow.transform.transforms
    inner = Flow(ode, flow.base).log_prob((x - standardize.mean) / standardize.scale)
    torch.testing.assert_close(flow.log_prob(x), inner - standardize.scale.log().sum())


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
    assert integral(flow, c=contexts[0], n=200) == pytest.approx(1, abs=2e-3)
    for c in contexts:
        assert sampler_agrees(flow, c=c) > 1e-3
    x = torch.randn(2, 2)
    assert not torch.allclose(flow.log_prob(x, contexts), flow.log_prob(x, contexts.flip(0)))


def test_samples_come_with_their_density_and_gradients(float64):
    flow = wild_flow(solver=TIGHT)
    torch.manual_seed(1)
    x, log_p = flow.rsample_and_log_prob(100)
    torch.testing.assert_close(log_p, flow.log_prob(x), rtol=1e-6, atol=1e-6)
    torch.manual_seed(1)
    torch.testing.assert_close(flow.rsample(100), x, rtol=1e-7, atol=1e-7)
    gradients = torch.autograd.grad(x.sum() + log_p.sum(), list(flow.parameters()))
    assert all(torch.isfinite(g).all() for g in gradients)
    assert not flow.sample(3).requires_grad


def test_a_mixture_base_has_no_rsample():
    flow = Flow(growth(0.3), Mixture((2,), 3))
    assert (wild_flow().has_rsample, flow.has_rsample) == (True, False)
    for draw in (flow.rsample, flow.rsample_and_log_prob):
        with pytest.raises(InputError, match="choice of a component"):
            draw(3)


def test_one_context_for_all_or_one_for_each():
    flow = wild_flow(context=2)
    c = torch.randn(2)
    torch.manual_seed(1)
    one = flow.sample(5, c)
    torch.manual_seed(1)
    assert torch.equal(one, flow.sample(5, c.expand(5, 2)))


@pytest.mark.parametrize("flow", [wild_flow(), scales(0.5, -1.0, 2.0)], ids=["one ODE", "two scales"])
def test_sampling_spares_the_divergence(flow, monkeypatch):
    fields = [part for part in flow.modules() if isinstance(part, Field)]
    for field in fields:
        monkeypatch.setattr(type(field), "velocity_and_divergence", None)
    assert flow.encode(flow.sample(3)).shape == (3, *flow.event_shape)


def test_one_ode_takes_the_same_path_by_one_solve_and_by_many(float64):
    flow = wild_flow(solver=TIGHT, data=torch.randn(500, 2) * 7 + 3)
    z = flow.base.sample(10)
    options = [SolveOptions(t_data=time) for time in TIMES]
    path = flow.trajectory(z, TIMES)
    torch.testing.assert_close(path[0], flow.transform.transforms[0].decode(z))
    for way in (flow.transform.decode, lambda z, options: flow.transform.inverse(z, options=options).point):
        single = torch.stack([way(z, options=each) for each in options])
        torch.testing.assert_close(path, single, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(flow.encode(path[-1]), z, rtol=1e-7, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("rates", [(0.5, -1.0, 2.0), (0.0, 0.0, 0.0)])
def test_several_scales_grow_at_their_rates(float64, rates):
    flow, still = scales(*rates), scales(0.0, 0.0, 0.0)
    z = flow.base.sample(5)
    finished, rest = z.flatten(1).chunk(2, 1)
    for time, x in zip(TIMES, flow.trajectory(z, TIMES), strict=True):
        grown = [finished * math.exp(time * sum(rates[:2])), rest * math.exp(time * sum(rates))]
        torch.testing.assert_close(x, still.decode(torch.cat(grown, 1).view_as(z)), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(flow.round_trip(z), z, rtol=1e-8, atol=1e-8)
    assert torch.equal(still.decode(z).flatten(1).sort(1).values, z.flatten(1).sort(1).values)  # a permutation


@torch.no_grad()
def test_several_odes_run_at_the_same_time(float64):
    fields = [Linear(torch.randn(2, 2) / 2, torch.randn(2)) for _ in range(2)]
    between = Standardize((2,)).fit(torch.randn(9, 2) * 3 + 1)
    flow = Flow(Compose([Continuous(fields[0], TIGHT), between, Continuous(fields[1], TIGHT)]), Normal((2,)))
    z = flow.base.sample(5)
    for time, x in zip(TIMES, flow.trajectory(z, TIMES), strict=True):
        expected = fields[0].solution(between.decode(fields[1].solution(z, time)), time)
        torch.testing.assert_close(x, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "flow",
    [
        wild_flow(),
        scales(0.5, -1.0, 2.0),
        Flow(Compose([Logit(), growth(0.3), growth(0.2)]), Mixture((3,))),
        Flow(Planar(2, 3), Normal((2,))),
    ],
    ids=["one ODE", "multiscale", "two ODEs", "planar"],
)
def test_paths_end_at_the_samples(flow):
    torch.manual_seed(1)
    paths = flow.sample_paths(4, TIMES)
    torch.manual_seed(1)
    torch.testing.assert_close(paths[-1], flow.sample(4))
    assert not paths.requires_grad


@pytest.mark.parametrize("other", [Standardize((2,)), Multiscale([Continuous(MLPField(2))])])
def test_splitting_needs_one_ode_next_to_the_base(other):
    ode = Continuous(MLPField(2))
    chain = [other, ode] if isinstance(other, Multiscale) else [ode, other]
    with pytest.raises(InputError, match="end with one Continuous"):
        Flow(Compose(chain), Normal((2,))).split()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_data": 1.5}, "t_data=1.5 must be at most 1"),
        ({"t_data": math.nan}, "t_data=nan"),
        ({"t_data": 0.2, "steer": 0.3}, "steer=0.3 must be less than t_data=0.2"),
        ({"energies": ("potential",)}, "'potential' is unknown; choose one of kinetic"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(InputError, match=message):
        SolveOptions(**options)


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
    assert flow.config is None


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
    ("context", "call", "names"),
    [
        (0, lambda flow: flow.log_prob(torch.randn(4, 3)), r"pass \(B, 2\)"),
        (0, lambda flow: flow.log_prob(torch.randn(2)), r"pass \(B, 2\)"),
        (0, lambda flow: flow.log_prob(torch.ones(4, 2, dtype=torch.complex64)), "x holds complex numbers"),
        (0, lambda flow: flow.log_prob(torch.tensor([[0.0, math.nan], [1.0, 2.0]])), "x is not finite in 1 of 2"),
        (1, lambda flow: flow.decode(torch.randn(4, 2, 1)), r"z of shape \(4, 2, 1\)"),
        (1, lambda flow: flow.trajectory(torch.randn(4, 3), [0, 1.0], torch.randn(4, 1)), r"z of shape \(4, 3\)"),
        (1, lambda flow: flow.log_prob(torch.randn(4, 2), [["a"]]), "c of type list cannot become a tensor"),
        (1, lambda flow: flow.log_prob(torch.randn(4, 2), torch.full((4, 1), math.inf)), "c is not finite in 4 of 4"),
        (1, lambda flow: flow.log_prob(torch.randn(4, 2)), "context=1"),
        (1, lambda flow: flow.rsample_and_log_prob(4, torch.randn(3, 1)), r"\(3, 1\) does not fit 4 samples"),
        (0, lambda flow: flow.log_prob([[0.0, 1.0], [0.0]]), "x of type list cannot become a tensor"),
        (0, lambda flow: flow.log_prob(None), "x of type NoneType"),
        (0, lambda flow: flow.half().log_prob(torch.randn(4, 2)), "the model is in torch.float16, too coarse"),
        (0, lambda flow: flow.half().sample(4), "the model is in torch.float16, too coarse"),
        (0, lambda flow: flow.sample(2.5), "n=2.5"),
        (0, lambda flow: flow.sample((2, 3)), r"n=\(2, 3\) must be a whole number"),
        (0, lambda flow: flow.sample(4, temperature="warm"), "temperature=warm must be a positive number"),
        (0, lambda flow: Flow(flow.base, flow.transform), r"Flow\(Normal, Compose\)"),
        (0, lambda flow: Flow(flow.transform, torch.distributions.Normal(0, 1)), r"Flow\(Compose, Normal\) needs"),
        (0, lambda flow: Compose([torch.nn.Linear(2, 2)]), "Compose takes transforms.*got Linear"),
        (1, lambda flow: flow.log_prob(torch.randn(4, 2), torch.randn(4)), r"c of shape \(4,\)"),
        (1, lambda flow: flow.sample(4, torch.tensor(1.0)), r"c of shape \(\)"),
        (1, lambda flow: flow.sample(-1, torch.randn(1)), "n=-1"),
    ],
)
def test_bad_input_is_named(context, call, names):
    with pytest.raises(InputError, match=names):
        call(wild_flow(context=context))


@pytest.mark.parametrize(
    "times",
    [[0.5, 1.0], [1.0, 0.5, 0.0], [0.0, 1.2], [0.0, 0.5, 0.5, 1.0], [0.0, math.nan], [0.0], [], 0.0, [[0.0, 1.0]]],
    ids=str,
)
@pytest.mark.parametrize("flow", [wild_flow(), scales(0.5, -1.0, 2.0)], ids=["one ODE", "two scales"])
def test_paths_begin_at_the_base_and_end_at_the_data(flow, times):
    for path in (lambda: flow.trajectory(flow.base.sample(2), times), lambda: flow.sample_paths(2, times)):
        with pytest.raises(InputError, match=r"times=.* must be two or more strictly increasing numbers"):
            path()


def test_times_may_be_arrays_without_gradients():
    flow, times = wild_flow(), torch.tensor(TIMES, dtype=torch.float64)
    z = flow.base.sample(3)
    for same in (times, times.numpy(), tuple(TIMES)):
        assert torch.equal(flow.trajectory(z, same), flow.trajectory(z, TIMES))
    with pytest.raises(InputError, match=r"pass times\.detach"):
        flow.trajectory(z, times.requires_grad_())


def test_torch_func_differentiates_densities(float64):
    flow, x = wild_flow(solver=TIGHT), torch.randn(3, 2, requires_grad=True)
    (expected,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    torch.testing.assert_close(torch.func.grad(lambda x: flow.log_prob(x).sum())(x.detach()), expected)


def test_nothing_in_nothing_out():
    flow = wild_flow()
    assert flow.log_prob(torch.zeros(0, 2)).shape == (0,)
    assert flow.sample(0).shape == (0, 2)


def test_training_checks_shapes_and_leaves_values_to_the_solver():
    with pytest.raises(InputError, match=r"pass \(B, 2\)"):
        wild_flow().elbo(torch.randn(4, 3))
    with pytest.raises(SolverError, match="non-finite"):
        wild_flow().elbo(torch.tensor([[math.nan, 0.0]]))
