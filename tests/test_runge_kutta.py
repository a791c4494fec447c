"""The Dormand-Prince loop against torchdiffeq, whose steps it takes, and against closed forms."""

import math

import pytest
import torch
from fields import Linear
from torchdiffeq import odeint

from anode import Field, InputError, MLPField, Solver, SolverError, count_evals

TOLERANCES = (1e-3, 1e-6, 1e-9)


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


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0), (0.0, 3.0)])
def test_takes_the_steps_of_torchdiffeq(float64, tolerance, times):
    x = torch.randn(20, 3)
    for field in (MLPField(3, (16, 16), "tanh", "concat"), MLPField(3, (16,), "softplus"), Linear(torch.randn(3, 3))):
        expected, calls = reference(field, x, times, tolerance)
        with count_evals() as nfe:
            y = Solver(rtol=tolerance, atol=tolerance).integrate(field, x, *times)
        assert nfe.forward == calls
        torch.testing.assert_close(y, expected[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_error_follows_the_tolerance(float64, tolerance):
    """x'' = -x, a circle: after one turn the state is back."""
    circle = Linear(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    x = torch.randn(10, 2)
    y = Solver(rtol=tolerance, atol=tolerance).integrate(circle, x, 0.0, 2 * math.pi)
    assert 1e-3 * tolerance < (y - x).norm(dim=1).max() < 30 * tolerance


def test_interpolated_times_are_of_fourth_order(float64):
    circle = Linear(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    x = torch.randn(10, 2)
    times = torch.linspace(0, 2 * math.pi, 33)
    path = Solver(rtol=1e-9, atol=1e-9).trajectory(circle, x, times)
    for t, y in zip(times, path, strict=True):
        torch.testing.assert_close(y, circle.solution(x, t), rtol=0, atol=1e-6)
    assert (path[1:-1] - circle.solution(x, 0)).abs().max() > 1  # there was something to get wrong


def test_gradients_do_not_depend_on_interpolated_times(float64):
    field = MLPField(2, (8,))
    x = torch.randn(4, 2, requires_grad=True)
    solver = Solver(rtol=1e-6, atol=1e-6)
    (alone,) = torch.autograd.grad(solver.integrate(field, x, 0, 1).sum(), x)
    (beside,) = torch.autograd.grad(solver.trajectory(field, x, [0, 0.3, 0.7, 1])[-1].sum(), x)
    torch.testing.assert_close(alone, beside)


def test_the_largest_component_controls_the_step(float64):
    field = MLPField(3, (16, 16))
    x, s = torch.randn(20, 3), torch.zeros(1000)
    solver = Solver(rtol=1e-7, atol=1e-7)
    with count_evals() as alone:
        solver.integrate(field, x, 0, 1)
    with count_evals() as both:
        solver.integrate(lambda t, y: (torch.ones_like(s), field(t, y[1])), (s, x), 0, 1, field=field)
    assert both.forward >= alone.forward


def test_no_motion_needs_no_care():
    x = torch.randn(5, 2)
    assert torch.equal(Solver().integrate(lambda t, y: torch.zeros_like(y), x, 0, 1), x)


def test_an_empty_batch_stays_empty():
    assert Solver().integrate(MLPField(2), torch.randn(0, 2), 0, 1).shape == (0, 2)


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match=r"\[\(4, 1\)\] for a state of shapes \[\(4, 2\)\]"):
        Solver().integrate(lambda t, y: y[:, :1], torch.randn(4, 2), 0, 1)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_field_that_is_never_finite_is_named(value):
    class Never(Field):
        def forward(self, t, x, c=None):
            return torch.full_like(x, value)

    with pytest.raises(SolverError, match="non-finite state at t = 0 after 1 evaluations"):
        Solver().integrate(Never(), torch.randn(4, 2), 0, 1)


def test_a_field_may_differentiate(float64):
    """Dynamics given by a Hamiltonian: dq/dt = dH/dp, dp/dt = -dH/dq, here a circle."""

    class Hamiltonian(Field):
        def forward(self, t, x, c=None):
            with torch.enable_grad():
                energy = x.square().sum() / 2
                dq, dp = torch.autograd.grad(energy, x, create_graph=True)[0].chunk(2, dim=1)
            return torch.cat([dp, -dq], 1)

    x = torch.randn(4, 2, requires_grad=True)
    circle = Linear(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    y = Solver(rtol=1e-9, atol=1e-9).integrate(Hamiltonian(), x, 0, 1)
    torch.testing.assert_close(y, circle.solution(x, torch.tensor(1.0)))


def test_a_field_that_is_finite_only_nearby_is_solved():
    """Where the first Euler step leaves the domain, smaller ones find the way."""
    y = Solver().integrate(lambda t, y: -1e4 * torch.log(y), torch.full((1, 1), 0.5, dtype=torch.float64), 0, 1e-3)
    assert 0.5 < float(y) < 1
