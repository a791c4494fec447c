"""Runge-Kutta steps against torchdiffeq, whose steps they equal, and against closed forms; roles of components."""

import math

import pytest
import torch
from fields import Linear
from torchdiffeq import odeint

from anode import Field, InputError, MLPField, Solver, SolverError, count_evals
from anode.runge_kutta import ComponentRoles


def reference(f, y0, times, tolerance):
    """torchdiffeq's states and evaluations, landing on the last time as ours does."""
    calls = 0

    def counted(t, y):
        nonlocal calls
        calls += 1
        return f(t, y)

    t = torch.tensor(times, dtype=torch.float64)
    options = {"step_t": t[-1:], "norm": lambda y: y.square().mean().sqrt()}
    return odeint(counted, y0, t, rtol=tolerance, atol=tolerance, method="dopri5", options=options), calls


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0), (0.0, 3.0)])
def test_takes_the_steps_of_torchdiffeq(float64, tolerance, times):
    x = torch.randn(20, 3)
    for field in (MLPField(3, (16, 16), "tanh", "concat"), MLPField(3, (16,), "softplus"), Linear(torch.randn(3, 3))):
        expected, calls = reference(field, x, times, tolerance)
        with count_evals() as nfe:
            y = Solver(rtol=tolerance, atol=tolerance).integrate(field, x, *times)
        assert nfe.forward == calls
        torch.testing.assert_close(y, expected[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_interpolated_times_are_of_fourth_order(float64, method):
    circle = Linear(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    x, times = torch.randn(10, 2), torch.linspace(0, 2 * math.pi, 33)
    path = Solver(method, rtol=1e-9, atol=1e-9).trajectory(circle, x, times)
    for t, y in zip(times, path, strict=True):
        torch.testing.assert_close(y, circle.solution(x, t), rtol=0, atol=1e-6)
    assert torch.equal(path[-1], Solver(method, rtol=1e-9, atol=1e-9).integrate(circle, x, 0, 2 * math.pi))


def test_no_motion_needs_no_care():
    x = torch.randn(5, 2)
    assert torch.equal(Solver().integrate(lambda t, y: torch.zeros_like(y), x, 0, 1), x)


def test_an_empty_batch_stays_empty():
    assert Solver().integrate(MLPField(2), torch.randn(0, 2), 0, 1).shape == (0, 2)


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match=r"f returns \(4, 1\) torch.float32 for a state \(4, 2\)"):
        Solver().integrate(lambda t, y: y[:, :1], torch.randn(4, 2), 0, 1)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_field_that_is_never_finite_is_named(value):
    class Never(Field):
        def forward(self, t, x, c=None):
            return torch.full_like(x, value)

    with pytest.raises(SolverError, match="non-finite state at t = 0 after 1 evaluations"):
        Solver().integrate(Never(), torch.randn(4, 2), 0, 1)


def test_a_field_that_is_finite_only_nearby_is_solved():
    """Where the first Euler step leaves the domain, smaller ones find the way."""
    y = Solver().integrate(lambda t, y: -1e4 * torch.log(y), torch.full((1, 1), 0.5, dtype=torch.float64), 0, 1e-3)
    assert 0.5 < float(y) < 1


@pytest.mark.parametrize("name", ["dopri5", "tsit5"])
def test_the_first_step_can_be_given(name, float64):
    y = torch.randn(5, 2)
    with count_evals() as chosen:
        Solver(name).integrate(lambda t, y: -y, y, 0, 1)
    with count_evals() as given:
        Solver(name, first_step=0.3).integrate(lambda t, y: -y, y, 1, 0)
    assert given.forward <= chosen.forward - 1


def decay(t, state):
    return -state[0] * (1 + t), state[0].square().sum(1)


@pytest.mark.parametrize("solver", [Solver(), Solver("tsit5"), Solver("rk4", step_size=0.1)], ids=str)
def test_quadratures_are_integrated_like_other_components(float64, solver):
    y0 = torch.randn(5, 2), torch.zeros(5)
    with count_evals() as plain:
        expected = solver.integrate(decay, y0, 0, 1)
    with count_evals() as counted:
        found = solver.integrate(decay, y0, 0, 1, roles=ComponentRoles(quadratures=1))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert plain == counted


@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
def test_stages_outside_b_need_no_quadratures(gradient, float64):
    """The second stage of dopri5: with the velocity alone there, all steps, ends and gradients are the same."""
    y, times = torch.randn(5, 2), []

    def velocity(t, state):
        times.append(float(t))
        return (-state[0] * (1 + t),)

    found = []
    for f_state in (None, velocity):
        x = y.clone().requires_grad_()
        roles = ComponentRoles(quadratures=1, f_state=f_state)
        end = Solver(gradient=gradient).integrate(decay, (x, torch.zeros(5)), 0, 1, roles=roles)
        (end[0].sum() + end[1].square().sum()).backward()
        found.append((*end, x.grad))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert times


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_components_can_be_left_out_of_the_error(method, float64):
    """A rapidly oscillating integral costs no step."""
    y0 = torch.randn(5, 2), torch.zeros(5)

    def f(t, state):
        return -state[0], 100 * torch.sin(100 * t).expand(5)

    counts = []
    for excluded in (0, 1):
        with count_evals() as nfe:
            Solver(method).integrate(f, y0, 0, 1, roles=ComponentRoles(exclude_from_error=excluded))
        counts.append(nfe.forward)
    with count_evals() as alone:
        Solver(method).integrate(lambda t, y: -y, y0[0], 0, 1)
    assert counts[0] > 2 * counts[1]
    assert counts[1] == alone.forward


@pytest.mark.parametrize(
    "solver", [Solver(rtol=1e-9, atol=1e-9), Solver("tsit5"), Solver("rk4", step_size=0.02)], ids=str
)
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
def test_on_step_is_summed_over_the_steps(float64, solver, t0, t1):
    """The trapezium rule over the slope nodes integrates the slope to the change of the state."""

    def on_step(nodes, slopes, h):
        areas = [
            (d - c) * h * (a[0] + b[0]) / 2 for c, d, a, b in zip(nodes, nodes[1:], slopes, slopes[1:], strict=False)
        ]
        return torch.stack(areas).sum(0).squeeze(1)

    y = torch.randn(5, 1)
    end, total = solver.integrate(lambda t, s: (-s[0],), (y,), t0, t1, roles=ComponentRoles(on_step=on_step))
    torch.testing.assert_close(total, (end - y).squeeze(1), rtol=2e-2, atol=1e-3)
    assert torch.equal(
        solver.integrate(lambda t, s: s, (y,), 0, 0, roles=ComponentRoles(on_step=on_step))[1], torch.zeros(5)
    )
