"""Second-order dynamics against the oscillator, finite differences and the Jacobian."""

import pytest
import torch
from fields import jacobians, wild

from anode import Augment, Field, InputError, MLPField, ODEBlock, SecondOrderField, Solver

T = torch.tensor(0.4)


def test_it_is_the_motion_of_an_oscillator(float64):
    """d^2x/dt^2 = -w^2 x from rest: x(t) = x cos wt, v(t) = -w x sin wt."""
    w = 1.7
    spring = Field.wrap(lambda t, v, x: -(w**2) * x)
    block, x, t = ODEBlock(SecondOrderField(spring), Solver(rtol=1e-10, atol=1e-10)), torch.randn(5, 2), torch.tensor(w)
    torch.testing.assert_close(block(Augment(2)(x)), torch.cat([x * t.cos(), -w * x * t.sin()], dim=1))


def test_gradients_equal_finite_differences(float64):
    block = ODEBlock(SecondOrderField(MLPField(2, (3,), context=2)), Solver(rtol=1e-9, atol=1e-9))
    y = torch.randn(2, 4, requires_grad=True)
    assert torch.autograd.gradcheck(block, y, eps=1e-5, atol=1e-6)

    names, values = zip(*block.named_parameters(), strict=True)
    block.solver = Solver(rtol=1e-9, atol=1e-9, gradient="direct")

    def end(*values):
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (y.detach(),))

    inputs = tuple(value.detach().requires_grad_() for value in values)
    assert torch.autograd.gradcheck(end, inputs, eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("hidden", [(5, 4), (5, 4, 3)])
def test_divergence_is_the_trace_of_the_acceleration(float64, hidden):
    field, y = wild(SecondOrderField(MLPField(3, hidden, context=3))), torch.randn(4, 6)
    velocity, divergence = field.velocity_and_divergence(T, y)
    diagonal = jacobians(field, T, y).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(velocity, field(T, y))
    torch.testing.assert_close(divergence, diagonal.sum(1))
    assert not diagonal[:, :3].any()


def test_a_context_joins_the_position(float64):
    field, y, c = SecondOrderField(MLPField(2, (4,), context=3)), torch.randn(5, 4), torch.randn(5, 1)
    expected = field.acceleration(T, y[:, 2:], torch.cat([y[:, :2], c], dim=1))
    torch.testing.assert_close(field(T, y, c), torch.cat([y[:, 2:], expected], dim=1))


def test_without_a_rule_of_the_acceleration_there_is_none():
    field = SecondOrderField(MLPField(2, (4, 4), time="squash", context=2))
    assert field.velocity_and_divergence(torch.zeros(3), torch.randn(3, 4)) is None


def test_bad_input_is_named():
    field = SecondOrderField(MLPField(2, context=2))
    with pytest.raises(InputError, match="even dimension 1"):
        field(T, torch.randn(3, 3))
    with pytest.raises(InputError, match=r"c of shape \(3, 3\) does not fit a field with context=2"):
        field(T, torch.randn(3, 4), torch.randn(3, 1))
