"""Objectives, path energies, couplings and variational inference against closed forms."""

import math
import sys
from itertools import permutations

import pytest
import torch
from fields import Linear
from torch import nn

from anode import Field, InputError, MLPField, Solver, count_evals
from cnf import (
    Compose,
    Continuous,
    Flow,
    FlowMatching,
    InTurn,
    MaximumLikelihood,
    Normal,
    PathOptions,
    Planar,
    ReverseKL,
    WarmStarted,
    density_model,
)
from cnf.couplings import entropic, independent, optimal_transport

TIGHT = Solver(rtol=1e-9, atol=1e-9)
SOLVERS = {
    "dopri5": TIGHT,
    "rk4": Solver("rk4", step_size=0.01),
    "midpoint": Solver("midpoint", step_size=0.02),
    "bosh3": Solver("bosh3", rtol=1e-8, atol=1e-8),
    "adjoint": Solver(rtol=1e-9, atol=1e-9, gradient="adjoint"),
}
ALL = PathOptions(("kinetic", "frobenius", "acceleration"))
OMEGA = 1.3
ROTATION = torch.tensor([[0.0, -OMEGA], [OMEGA, 0.0]], dtype=torch.float64)


class Shear(Field):
    """dx/dt = (t + x2, 0), whose acceleration along the path is (1, 0)."""

    def forward(self, t, x, c=None):
        return torch.stack([t + x[:, 1], 0 * x[:, 1]], 1)


def wild(seed=0, **options):
    torch.manual_seed(seed)
    flow = density_model((2,), hidden=(16, 16), **options)
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.4)
    return flow


@pytest.mark.parametrize("way", ["forward", "inverse"])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_energies_of_a_constant_field(float64, solver, way):
    field = Linear(torch.zeros(2, 2), torch.tensor([3.0, -1.0]))
    energies = getattr(Continuous(field, solver), way)(torch.randn(5, 2), path=ALL).energies
    torch.testing.assert_close(energies["kinetic"], torch.full((5,), 5.0))
    torch.testing.assert_close(energies["frobenius"], torch.zeros(5))
    torch.testing.assert_close(energies["acceleration"], torch.zeros(5), rtol=0, atol=1e-16)


@pytest.mark.parametrize("way", ["forward", "inverse"])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_energies_of_a_rotation(float64, solver, way):
    x = torch.randn(5, 2)
    energies = getattr(Continuous(Linear(ROTATION), solver), way)(x, path=ALL).energies
    square = x.square().sum(1)
    torch.testing.assert_close(energies["kinetic"], OMEGA**2 * square / 2, rtol=1e-3, atol=0)
    torch.testing.assert_close(energies["frobenius"], torch.full((5,), 2 * OMEGA**2))
    # from the ends of steps of size h it is too small by a share (OMEGA h)^2 / 12
    torch.testing.assert_close(energies["acceleration"], OMEGA**4 * square, rtol=1e-3, atol=0)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_acceleration_counts_the_explicit_time_and_the_log_density(float64, solver):
    energies = Continuous(Shear(), solver)(torch.randn(4, 2), path=ALL).energies
    torch.testing.assert_close(energies["acceleration"], torch.ones(4), rtol=1e-6, atol=0)

    class Growing(Field):  # dx/dt = t x: divergence 2 t, so that d div / dt = 2
        def forward(self, t, x, c=None):
            return t.to(x.dtype) * x

    energies = Continuous(Growing(), solver)(torch.zeros(4, 2), path=ALL).energies
    torch.testing.assert_close(energies["acceleration"], torch.full((4,), 4.0), rtol=1e-6, atol=0)


def test_frobenius_norm_is_that_of_the_jacobian(float64):
    flow = wild()
    x, solver = torch.randn(6, 2), Solver("rk4", step_size=0.05)
    ode = flow.parts()[1]
    found = Continuous(ode.field, solver)(x, path=PathOptions(("frobenius",))).energies["frobenius"]

    states, expected, step = x, torch.zeros(6), 0.05
    for i in range(20):  # Simpson's rule over the same path
        t = 1 - i * step
        middle, after = (
            Continuous(ode.field, Solver("rk4", step_size=0.005)).solver.integrate(
                ode.field, states, t, t - part * step
            )
            for part in (0.5, 1)
        )
        norms = [
            torch.autograd.functional.jacobian(lambda x, t=time: ode.field(torch.tensor(t), x).sum(0), point)
            .square()
            .sum((0, 2))
            for time, point in ((t, states), (t - step / 2, middle), (t - step, after))
        ]
        expected = expected + step * (norms[0] + 4 * norms[1] + norms[2]) / 6
        states = after
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_hutchinson_estimates_the_frobenius_norm(float64):
    x = torch.randn(1, 2).expand(4000, 2)
    ode = wild(divergence="hutchinson").parts()[1]
    estimates = ode(x, path=PathOptions(("frobenius",))).energies["frobenius"]
    ode.divergence = "exact"
    truth = ode(x[:1], path=PathOptions(("frobenius",))).energies["frobenius"]
    assert estimates.std() > 0
    assert (estimates.mean() - truth).abs() < 4 * estimates.std() / 4000**0.5 + 1e-6


@pytest.mark.parametrize("method", ["dopri5", "adjoint", "bosh3"])
def test_energies_leave_the_steps_alone(method):
    gradient = "adjoint" if method == "adjoint" else "direct"
    solver = Solver("bosh3" if method == "bosh3" else "dopri5", 1e-4, 1e-4, gradient=gradient)
    flow, x = wild(solver=solver), 3 * torch.randn(50, 2)
    with count_evals() as plain:
        without = flow.transform(x)
        without.log_det.sum().backward()
    with count_evals() as counted:
        with_energies = flow.transform(x, path=ALL)
        with_energies.log_det.sum().backward()
    assert plain.forward == counted.forward >= 20
    assert plain.backward == counted.backward
    assert (plain.backward > 0) == (method == "adjoint")
    assert torch.equal(without.point, with_energies.point)
    assert torch.equal(without.log_det, with_energies.log_det)


def test_weight_zero_is_plain_likelihood_bit_for_bit():
    flow, x = wild(), torch.randn(50, 2)
    plain = MaximumLikelihood(flow)(x)
    zero = MaximumLikelihood(flow, kinetic=0.0, frobenius=0.0, acceleration=0.0, steer=0.0)
    assert torch.equal(plain, zero(x))
    reported = zero.terms(x, energies=ALL.energies)
    assert torch.equal(plain, reported["nll"])
    assert torch.equal(plain, -flow.log_prob(x).mean())
    assert set(reported) == {"nll", *ALL.energies}


def test_the_loss_is_the_weighted_sum_of_its_terms(float64):
    flow, x = wild(), torch.randn(20, 2)
    objective = MaximumLikelihood(flow, kinetic=0.1, frobenius=0.2, acceleration=0.3)
    terms = objective.terms(x)
    expected = terms["nll"] + 0.1 * terms["kinetic"] + 0.2 * terms["frobenius"] + 0.3 * terms["acceleration"]
    torch.testing.assert_close(objective(x), expected)


@pytest.mark.parametrize("solver", ["dopri5", "adjoint", "rk4", "midpoint"])
def test_gradients_of_energies_are_right(float64, solver):
    adaptive = {"dopri5": TIGHT, "adjoint": SOLVERS["adjoint"]}  # whose steps are constants to the gradient
    numerics = adaptive.get(solver) or Solver(solver, step_size=0.25)
    flow, x = wild(solver=numerics), torch.randn(4, 2)
    objective = MaximumLikelihood(flow, kinetic=0.1, frobenius=0.2, acceleration=0.3)
    bias = flow.parts()[1].field.layers[1].bias
    (gradient,) = torch.autograd.grad(objective(x), bias)
    with torch.no_grad():
        bias[3] += 1e-5
        above = objective(x)
        bias[3] -= 2e-5
        below = objective(x)
    tolerance = 2e-3 if solver in adaptive else 1e-6
    assert abs((above - below) / 2e-5 - gradient[3]) < tolerance * gradient.abs().max()


def test_lifted_flows_have_energies():
    model = density_model((1, 2, 2), hidden=(8, 8), levels=17, data=torch.randint(17, (50, 1, 2, 2)))
    nn.init.normal_(model.flow.parts()[1].field.layers[-1].weight)
    assert MaximumLikelihood(model).terms(torch.randint(17, (9, 1, 2, 2)), ("kinetic",))["kinetic"] > 0


def test_steering_moves_the_base(float64):
    """A field of constant speed 1 from a base at time b is a shift by 1 - b, uniform in [1 - s, 1 + s]."""
    flow = Flow(Continuous(Linear(torch.zeros(1, 1), torch.ones(1))), Normal((1,)))
    objective, far = MaximumLikelihood(flow, steer=0.5), torch.full((1, 1), 5.0)
    shifts = [5 - (2 * (objective(far).item() - math.log(2 * math.pi) / 2)) ** 0.5 for _ in range(60)]
    assert 0.5 - 1e-9 <= min(shifts) < 0.7
    assert 1.3 < max(shifts) <= 1.5 + 1e-9
    assert torch.equal(flow.log_prob(torch.ones(1, 1)), flow.log_prob(torch.ones(1, 1)))  # evaluation is not steered


@pytest.mark.parametrize("options", [{"kinetic": -1.0}, {"acceleration": math.nan}, {"steer": 1.0}, {"steer": -0.1}])
def test_bad_weights_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        MaximumLikelihood(wild(), **options)


@pytest.mark.parametrize("rate", [2.0, -2.0])
@pytest.mark.parametrize(("method", "within"), [("dopri5", 0.05), ("rk4", 0.01)])
def test_acceleration_of_growth_and_decay_at_coarse_steps(float64, rate, method, within):
    """Of x' = a x, a^4 times the integral of x^2 along the path; from the last stage alone it is 6 to 12% off."""
    solver = Solver("rk4", step_size=0.125) if method == "rk4" else Solver(rtol=1e-4, atol=1e-4)
    x = torch.randn(5, 2)
    energy = Continuous(Linear(rate * torch.eye(2)), solver)(x, path=PathOptions(("acceleration",))).energies[
        "acceleration"
    ]
    expected = rate**4 * x.square().sum(1) * -math.expm1(-2 * rate) / (2 * rate)
    torch.testing.assert_close(energy, expected, rtol=within, atol=0)


def test_a_hutchinson_estimate_adds_its_variance_to_the_acceleration(float64):
    x = torch.randn(1, 2).expand(4000, 2)
    ode = wild(divergence="hutchinson").parts()[1]
    estimates = ode(x, path=PathOptions(("acceleration",))).energies["acceleration"]
    ode.divergence = "exact"
    exact = ode(x[:1], path=PathOptions(("acceleration",))).energies["acceleration"]
    assert estimates.mean() - exact > 4 * estimates.std() / 4000**0.5


def test_energies_of_a_model_without_an_ode_are_refused():
    flow = Flow(Planar(2, 3), Normal((2,)))
    with pytest.raises(InputError, match="kinetic: the model has no ODE"):
        MaximumLikelihood(flow).terms(torch.randn(5, 2), ("kinetic",))
    for options in ({"acceleration": 1e-3}, {"steer": 0.1}):
        with pytest.raises(InputError, match=f"{next(iter(options))}: the model has no ODE"):
            MaximumLikelihood(flow, **options)
    assert MaximumLikelihood(flow).steer == 0


def test_unknown_energies_are_refused():
    with pytest.raises(InputError, match="kinetic, frobenius, acceleration"):
        PathOptions(("potential",))


# flow matching ---------------------------------------------------------------------------------------------------


class Exact(Field):
    """The optimum of flow matching from N(0, I) to N(m, s^2 I): a linear field, by regression of normal variables."""

    def __init__(self, mean, std, variance_preserving=False):
        super().__init__()
        self.mean, self.std, self.variance_preserving = mean, std, variance_preserving

    def forward(self, t, x, c=None):
        t = t.view(-1, 1)
        angle = math.pi / 2 * t
        alpha, beta, da, db = (
            (angle.sin(), angle.cos(), math.pi / 2 * angle.cos(), -math.pi / 2 * angle.sin())
            if self.variance_preserving
            else (t, 1 - t, 1 + 0 * t, 0 * t - 1)
        )
        variance = (alpha * self.std) ** 2 + beta**2
        covariance = alpha * da * self.std**2 + beta * db
        return da * self.mean + covariance / variance * (x - alpha * self.mean)


@pytest.mark.parametrize("variance_preserving", [False, True])
def test_the_optimum_from_gaussian_to_gaussian(float64, variance_preserving):
    """Among fields, the closed form has the least loss, and its flow is the Gaussian of the data."""
    mean, std = torch.tensor([2.0, -1.0]), 0.5
    x = mean + std * torch.randn(40_000, 2)
    kind = "variance-preserving" if variance_preserving else "straight"

    def loss(factor, shift):
        field = Exact(mean, std, variance_preserving)
        torch.manual_seed(1)

        class Off(Field):
            def forward(self, t, y, c=None):
                return factor * field(t, y) + shift

        return FlowMatching(Flow(Continuous(Off()), Normal((2,))), interpolation=kind)(x).item()

    best = loss(1.0, 0.0)
    for factor, shift in ((1.05, 0.0), (0.95, 0.0), (1.0, 0.1), (1.0, -0.1)):
        assert loss(factor, shift) > best + 1e-4
    flow = Flow(Continuous(Exact(mean, std, variance_preserving), TIGHT), Normal((2,)))
    expected = torch.distributions.Normal(mean, std).log_prob(x[:50]).sum(1)
    torch.testing.assert_close(flow.log_prob(x[:50]), expected, rtol=0, atol=1e-6)


def test_flow_matching_trains_the_density():
    data = torch.randn(4000, 2) * torch.tensor([3.0, 0.5]) + torch.tensor([10.0, 0.0])
    flow = density_model((2,), hidden=(32, 32), data=data)
    ode = flow.parts()[1]
    nn.init.normal_(ode.field.layers[-1].weight, std=1.0)  # away from the solution, which is the zero field
    before = -flow.log_prob(data).mean()
    objective = FlowMatching(flow, coupling="optimal_transport")
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    for step in range(150):
        optimizer.zero_grad()
        objective(data[256 * (step % 15) :][:256]).backward()
        optimizer.step()
    entropy = 1 + math.log(2 * math.pi) + math.log(1.5)
    assert before > entropy + 0.5
    assert -flow.log_prob(data).mean() < entropy + 0.2


def test_times_are_stratified_and_know_nothing_of_places():
    """Sorted data would else be learnt from the base on here, and towards the data there."""
    flow = density_model((1,), hidden=(8,))
    seen = []
    flow.parts()[1].field.forward = lambda t, x, c=None: seen.append(t) or torch.zeros_like(x)
    for _ in range(400):
        FlowMatching(flow)(torch.zeros(50, 1))
    times = torch.stack(seen)
    parts = (50 * times).floor()
    assert torch.equal(parts.sort(1).values, torch.arange(50.0).expand(400, 50))
    within = 50 * times - parts
    assert abs(within.mean() - 0.5) < 5 / (12 * 400 * 50) ** 0.5
    places = torch.arange(50.0) - 24.5
    slopes = (times - 0.5) @ places / places.square().sum() * 50  # of time by place: 1 where they go together
    assert abs(slopes.mean()) < 5 * slopes.std() / 400**0.5


def test_noise_blurs_the_data(float64):
    """The optimum of data at one point with noise sigma has as much loss as the base, whatever sigma."""
    flow = Flow(Continuous(Linear(torch.zeros(1, 1), torch.zeros(1))), Normal((1,)))
    losses = []
    for sigma in (0.0, 0.7):
        torch.manual_seed(0)
        objective = FlowMatching(flow, sigma=sigma)
        seen = []
        flow.transform.field.forward = lambda t, x, c=None, seen=seen: seen.append((t, x)) or torch.zeros_like(x)
        losses.append(objective(torch.zeros(50_000, 1)))
        t, x = seen[0]
        spread = (x[:, 0].square() - (1 - t).square()).mean()  # the variance beyond that of the path
        assert spread == pytest.approx(sigma**2, abs=0.02)
    torch.testing.assert_close(losses[0], losses[1])


def test_points_all_alike_are_coupled(float64):
    pytest.importorskip("ot")
    assert torch.equal(entropic(torch.ones(8, 2), torch.ones(8, 2)), torch.ones(8, 2))


def test_a_missing_library_is_named_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(InputError, match=r"augmented-flows\[transport\]"):
        FlowMatching(wild(), coupling="entropic")


def test_couplings_of_contexts_and_images():
    model = density_model((1, 2, 2), hidden=(8, 8), levels=17, data=torch.randint(17, (50, 1, 2, 2)))
    FlowMatching(model, "optimal_transport")(torch.randint(17, (20, 1, 2, 2))).backward()
    flow = density_model((2,), hidden=(8, 8), context=3)
    FlowMatching(flow)((torch.randn(20, 2), torch.randn(20, 3))).backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


def test_optimal_transport_is_a_permutation_of_least_cost(float64):
    z, x = torch.randn(6, 2), torch.randn(6, 2)
    coupled = optimal_transport(z, x)
    assert sorted(map(tuple, coupled.tolist())) == sorted(map(tuple, z.tolist()))
    cost = (x - coupled).square().sum()
    least = min((x - z[list(order)]).square().sum() for order in permutations(range(6)))
    assert cost == pytest.approx(least.item())
    for _ in range(20):
        z, x = torch.randn(30, 1, 3), torch.randn(30, 1, 3)
        assert (x - optimal_transport(z, x)).square().sum() <= (x - independent(z, x)).square().sum()


def test_entropic_coupling_comes_near_the_least_cost(float64):
    pytest.importorskip("ot")
    z, x = torch.randn(400, 2), torch.randn(400, 2) + 3

    def cost(coupling):
        return (x - coupling(z, x)).square().sum(1).mean().item()

    least, none = cost(optimal_transport), cost(independent)
    costs = [cost(lambda z, x, r=r: entropic(z, x, r)) for r in (0.01, 1.0)]
    assert costs[0] == pytest.approx(least, abs=0.15 * (none - least))
    assert costs[0] < costs[1] < none + 0.2 * (none - least)


def test_bad_flow_matching_is_refused():
    ode = Continuous(MLPField(2))
    with pytest.raises(InputError, match="one Continuous"):
        FlowMatching(Flow(Compose([ode, Continuous(MLPField(2))]), Normal((2,))))
    for options in ({"coupling": "none"}, {"interpolation": "curved"}, {"sigma": -1.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            FlowMatching(Flow(ode, Normal((2,))), **options)


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        (torch.tensor([[1.0, math.nan]]), "x is not finite in 1 of 1"),
        (torch.randn(5, 1), r"x of shape \(5, 1\)"),
        (torch.ones(5, 2, dtype=torch.int64), "x has dtype torch.int64"),
        (torch.randn(0, 2), "no samples"),
        ((torch.randn(5, 2), torch.randn(5, 3)), "coupling of x and z"),
    ],
)
def test_bad_batches_of_flow_matching_are_refused(batch, names):
    flow = density_model((2,), hidden=(8,), context=0 if isinstance(batch, torch.Tensor) else 3)
    if isinstance(batch, torch.Tensor):
        with pytest.raises(InputError, match=names):
            MaximumLikelihood(flow)(batch)
    with pytest.raises(InputError, match=names):
        FlowMatching(flow, "optimal_transport")(batch)


def test_bad_reverse_kl_is_refused():
    flow = density_model((2,), hidden=(8,))
    with pytest.raises(InputError, match="Flow"):
        ReverseKL(density_model((2,), levels=4), lambda x: x[:, 0])
    with pytest.raises(InputError, match="batch=0"):
        ReverseKL(flow, lambda x: x[:, 0])(0)
    with pytest.raises(InputError, match="number of samples"):
        ReverseKL(flow, lambda x: x[:, 0])(torch.randn(5, 2))
    with pytest.raises(InputError, match=r"shape \(\) for 7 points: return \(7,\)"):
        ReverseKL(flow, lambda x: x.sum())(7)
    with pytest.raises(InputError, match="cannot be called"):
        ReverseKL(flow, 3)
    with pytest.raises(InputError, match="differentiable"):
        ReverseKL(flow, lambda x: x[:, 0].detach())(7)
    with pytest.raises(InputError, match="not finite at 7 of 7 points"):
        ReverseKL(flow, lambda x: x[:, 0] - math.inf)(7)
    with torch.no_grad():
        assert torch.isfinite(ReverseKL(flow, lambda x: x[:, 0])(7))


def test_objectives_in_turn():
    flow, x = wild(), torch.randn(30, 2)
    objective = InTurn(FlowMatching(flow), MaximumLikelihood(flow))
    assert torch.equal(objective((1, x)), MaximumLikelihood(flow)(x))
    torch.manual_seed(5)
    first = objective((0, x))
    torch.manual_seed(5)
    assert torch.equal(first, FlowMatching(flow)(x))
    assert len(list(objective.parameters())) == len(list(flow.parameters()))


# variational inference -------------------------------------------------------------------------------------------


def log_target(mean, std, constant=0.0):
    return lambda x: torch.distributions.Normal(mean, std).log_prob(x).sum(1) + constant


@pytest.mark.parametrize("path_gradient", [False, True])
def test_reverse_kl_of_gaussians_is_known(float64, path_gradient):
    """A shift by b against N(m, s^2): KL = sum of log s + (1 + (b - m)^2) / (2 s^2) - 1/2."""
    field = Linear(torch.zeros(2, 2), torch.tensor([1.0, 0.0]))
    mean, std = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.7])
    flow = Flow(Continuous(field), Normal((2,)))
    objective = ReverseKL(flow, log_target(mean, std, constant=5.0), path_gradient)
    loss = objective(200_000)
    kl = (std.log() + (1 + (field.b - mean) ** 2) / (2 * std**2) - 0.5).sum()
    assert loss.item() == pytest.approx(kl.item() - 5, abs=0.02)
    loss.backward()
    torch.testing.assert_close(field.b.grad, ((field.b - mean) / std**2).detach(), rtol=0, atol=0.03)


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
@pytest.mark.parametrize("path_gradient", [False, True])
def test_every_evaluation_is_of_the_objective(path_gradient, gradient):
    flow = wild(solver=Solver(gradient=gradient))
    objective = ReverseKL(flow, log_target(torch.zeros(2), torch.ones(2)), path_gradient)
    with count_evals() as every, count_evals(objective) as own:
        objective(50).backward()
    assert own == every
    assert own.solves == 1 + path_gradient


@pytest.mark.parametrize("path_gradient", [False, True])
def test_the_path_gradient_has_no_variance_at_the_optimum(float64, path_gradient):
    field = Linear(torch.zeros(2, 2), torch.tensor([1.0, -2.0]))
    flow = Flow(Continuous(field, TIGHT), Normal((2,)))
    gradients = []
    for _ in range(5):
        objective = ReverseKL(flow, log_target(torch.tensor([1.0, -2.0]), torch.ones(2)), path_gradient)
        gradients.append(torch.autograd.grad(objective(16), field.a)[0])
    spread = torch.stack(gradients).std(0).max()
    assert spread < 1e-6 if path_gradient else spread > 1e-2


def test_path_gradients_are_the_same_by_the_adjoint(float64):
    found = []
    for gradient in ("direct", "adjoint"):
        flow = wild(solver=Solver(rtol=1e-9, atol=1e-9, gradient=gradient))
        objective = ReverseKL(flow, log_target(torch.zeros(2), torch.ones(2)), path_gradient=True)
        torch.manual_seed(0)
        objective(20).backward()
        found.append(flow.parts()[1].field.layers[0].weight.grad)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)


def test_both_gradients_agree_in_the_mean(float64):
    flow = wild(3, solver=Solver("rk4", step_size=0.25))
    target = log_target(torch.tensor([0.5, 0.0]), torch.tensor([1.0, 2.0]))
    weight = flow.parts()[1].field.layers[0].weight

    def gradients(path_gradient):
        objective = ReverseKL(flow, target, path_gradient)
        found = torch.stack([torch.autograd.grad(objective(500), weight)[0] for _ in range(60)])
        return found.mean(0), found.std(0) / 60**0.5

    (plain, plain_error), (path, path_error) = gradients(False), gradients(True)
    assert ((plain - path).abs() < 5 * (plain_error**2 + path_error**2).sqrt() + 1e-6).all()
    assert plain.abs().max() > 10 * path_error.max()


def test_a_warm_start_spares_evaluations_and_resumes_as_it_would_have_gone_on():
    def made():
        torch.manual_seed(0)
        return WarmStarted(MaximumLikelihood(density_model((2,), hidden=(8, 8), solver=Solver(rtol=1e-6, atol=1e-6))))

    def step(objective, x):
        with count_evals(objective) as nfe:
            loss = objective(x)
        return loss.item(), nfe.forward

    x = 3 * torch.randn(64, 2)
    objective, resumed = made(), made()
    cold, warm = step(objective, x), step(objective, x)
    assert cold == step(made(), x)
    assert warm[1] < cold[1]
    assert warm[0] == pytest.approx(cold[0], abs=1e-5)
    resumed.load_state_dict(objective.state_dict())
    assert step(resumed, x) == step(objective, x)
    objective.set_extra_state(None)
    assert step(objective, x) == cold
