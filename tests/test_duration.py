"""A field over a learned time against the field itself, solved that long."""

import math

import pytest
import torch
from fields import Conv, Linear, wild

from anode import Duration, InputError, MLPField, ODEBlock, Solver, count_evals
from cnf import exact

SOLVER = Solver(rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("time", ["none", "concat", "bias", "squash", "hyper"])
def test_unit_time_is_the_field_solved_for_its_duration(float64, time):
    field = wild(MLPField(3, (6, 5), time=time, context=2))
    x, c = torch.randn(5, 3), torch.randn(5, 2)
    expected = SOLVER.integrate(lambda t, x: field(t, x, c), x, 0.0, 1.7, field=field)
    torch.testing.assert_close(ODEBlock(Duration(field, 1.7), SOLVER)(x, c), expected, rtol=0, atol=1e-8)


def test_a_linear_field_flows_by_its_matrix_exponential(float64):
    field = Linear(torch.randn(3, 3), torch.randn(3))
    x = torch.randn(5, 3)
    flowed = ODEBlock(Duration(field, 0.4), SOLVER)(x)
    torch.testing.assert_close(flowed, field.solution(x, 0.4), rtol=0, atol=1e-8)


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
def test_gradient_reaches_the_duration(float64, gradient):
    """dx(T)/ds = 2 s f(T, x(T))."""
    field = wild(MLPField(2, (6,), time="squash"))
    block = ODEBlock(Duration(field, 1.7), Solver(rtol=1e-9, atol=1e-9, gradient=gradient))
    end = block(torch.randn(4, 2))
    end.sum().backward()
    expected = 2 * math.sqrt(1.7) * field(torch.tensor(1.7), end).sum()
    torch.testing.assert_close(block.field.s.grad, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("hidden", [(), (7,), (7, 5)])
def test_closed_form_divergence_is_the_trace_of_the_jacobian(float64, hidden):
    field = Duration(wild(MLPField(3, hidden, time="squash", context=2, residual=True)), 1.7)
    x, c, t = torch.randn(5, 3), torch.randn(5, 2), torch.tensor(0.3)
    velocity, divergence = field.velocity_and_divergence(t, x, c)
    jacobian = torch.autograd.functional.jacobian(lambda x: field(t, x, c).sum(0), x).transpose(0, 1)
    torch.testing.assert_close(velocity, field(t, x, c))
    torch.testing.assert_close(divergence, jacobian.diagonal(dim1=1, dim2=2).sum(1), rtol=0, atol=1e-12)


def test_a_field_without_a_closed_form_stays_without(float64):
    field = Duration(Conv(1), 1.7)
    t, x = torch.tensor(0.3), torch.randn(2, 1, 2, 2)
    assert field.velocity_and_divergence(t, x) is None
    expected = 1.7 * exact(field.field, 1.7 * t, x).divergence
    torch.testing.assert_close(exact(field, t, x).divergence, expected)


def test_time_per_sample_is_the_same_as_one_by_one(float64):
    field = Duration(wild(MLPField(2, (6,), time="hyper", context=3)), 1.7)
    x, c, t = torch.randn(4, 2), torch.randn(4, 3), torch.rand(4)
    alone = torch.cat([field(t[i], x[i : i + 1], c[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(field(t, x, c), alone)


def test_one_parameter_more_that_stays_positive():
    field = MLPField(2)
    long = Duration(field, 2.5)
    assert sum(p.numel() for p in long.parameters()) == 1 + sum(p.numel() for p in field.parameters())
    torch.testing.assert_close(long.length.item(), 2.5)
    long.s.data.neg_()
    torch.testing.assert_close(long.length.item(), 2.5)


def test_type_and_count_stay():
    """Single precision within the solver's double clock, and evaluations counted as ever."""
    block = ODEBlock(Duration(MLPField(2), 0.5), Solver("rk4", step_size=0.25))
    with count_evals(block) as evaluations:
        assert block(torch.randn(4, 2)).dtype == torch.float32
    assert evaluations.forward == 16


@pytest.mark.parametrize("initial", [0, -1.0, float("inf"), float("nan")])
def test_bad_input_is_named(initial):
    with pytest.raises(InputError, match=f"initial={initial}"):
        Duration(MLPField(2), initial)
