"""Coefficients against the conditions they have to meet."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from anode import InputError, Solver, count_evals
from anode.steps import Step, Stepper
from anode.tableaus import ADAPTIVE, FIXED

ALL = ADAPTIVE | FIXED


def whole(tableau):
    """Nodes, matrix and weights, with the last stage of an adaptive method."""
    n = len(tableau.nodes)
    matrix, nodes, weights = np.zeros((n, n)), np.array(tableau.nodes), np.array(tableau.solution)
    for i, row in enumerate(tableau.stages):
        matrix[i, : len(row)] = row
    if tableau.adaptive:
        matrix = np.pad(matrix, ((0, 1), (0, 1)))
        matrix[n, :n] = weights
        nodes, weights = np.append(nodes, 1.0), np.append(weights, 0.0)
    return nodes, matrix, weights


def conditions(nodes, matrix, order):
    """Elementary weights phi and densities gamma of the trees up to an order: sum b phi = 1 / gamma."""
    one, c, a = np.ones_like(nodes), nodes, matrix
    found = [(1, one, 1), (2, c, 2), (3, c**2, 3), (3, a @ c, 6)]
    found += [(4, c**3, 4), (4, c * (a @ c), 8), (4, a @ c**2, 12), (4, a @ (a @ c), 24)]
    found += [(5, c**4, 5), (5, c**2 * (a @ c), 10), (5, (a @ c) ** 2, 20), (5, c * (a @ c**2), 15)]
    found += [(5, c * (a @ (a @ c)), 30), (5, a @ c**3, 20), (5, a @ (c * (a @ c)), 40), (5, a @ (a @ c**2), 60)]
    found += [(5, a @ (a @ (a @ c)), 120)]
    return [(phi, gamma, of) for of, phi, gamma in found if of <= order]


@pytest.mark.parametrize("name", ALL)
def test_methods_have_their_order(name):
    tableau = ALL[name]
    nodes, matrix, weights = whole(tableau)
    np.testing.assert_allclose(matrix.sum(1), nodes, atol=1e-13)
    for phi, gamma, _ in conditions(nodes, matrix, tableau.order):
        assert weights @ phi == pytest.approx(1 / gamma, abs=1e-13)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_error_is_that_of_a_method_of_one_order_less(name):
    tableau = ADAPTIVE[name]
    nodes, matrix, _ = whole(tableau)
    error = np.array(tableau.error)
    for phi, _, _ in conditions(nodes, matrix, 4):
        assert error @ phi == pytest.approx(0, abs=1e-13)
    assert max(abs(error @ phi) for phi, _, of in conditions(nodes, matrix, 5) if of == 5) > 1e-6


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
def test_interpolation_has_order_four_within_a_step(name, share):
    tableau = ADAPTIVE[name]
    nodes, matrix, weights = whole(tableau)
    inside = np.array([sum(b * share ** (j + 1) for j, b in enumerate(row)) for row in tableau.dense])
    for phi, gamma, of in conditions(nodes, matrix, 4):
        assert inside @ phi == pytest.approx(share**of / gamma, abs=1e-12)
    if share == 1:
        np.testing.assert_allclose(inside, weights, atol=1e-12)


@pytest.mark.parametrize("name", ["dopri5", "tsit5", "rk4"])
def test_rates_are_seen_at_second_order(name, float64):
    """On y' = y the rate at a node s of a step h is exp(s h) up to order h^3."""
    tableau = ALL[name]

    def f(t, y):
        return (y[0] + 0 * t,)

    errors = []
    for h in (0.1, 0.05):
        y = (torch.ones(1),)
        step = Step(0.0, y, h)
        stepper = Stepper(tableau, f)
        slopes, after = stepper.stages(step.t, y, f(0.0, y), h)
        slopes += stepper.slope_after(0.0, after, h)
        seen = tableau.seen(slopes)
        assert len(seen) == len(tableau.seen_at)
        errors.append(max(abs(float(k[0]) - math.exp(s * h)) for s, k in zip(tableau.seen_at, seen, strict=True)))
    assert math.log2(errors[0] / errors[1]) > 1.9


@pytest.mark.parametrize("name", ADAPTIVE)
def test_solutions_are_those_of_scipy(name, float64):
    """Of a pendulum, which is not linear."""

    def pendulum(t, y):
        return torch.stack([y[:, 1], -torch.sin(y[:, 0]) + 0.1 * torch.cos(t)], 1)

    y0 = torch.tensor([[1.0, 0.0], [2.5, 0.3]])
    times = [0.0, 1.0, 2.7, 6.0]
    path = Solver(name, rtol=1e-9, atol=1e-9).trajectory(pendulum, y0, times)
    for i, start in enumerate(y0):
        reference = solve_ivp(
            lambda t, y: pendulum(torch.tensor(t), torch.from_numpy(y)[None])[0].numpy(),
            (0, 6),
            start.numpy(),
            rtol=1e-11,
            atol=1e-11,
            t_eval=times,
        )
        np.testing.assert_allclose(path[:, i].numpy(), reference.y.T, atol=2e-6)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_first_step_can_be_told(name, float64):
    y = torch.randn(5, 2)
    with count_evals() as found:
        Solver(name).integrate(lambda t, y: -y, y, 0, 1)
    with count_evals() as told:
        Solver(name, first_step=0.3).integrate(lambda t, y: -y, y, 1, 0)
    assert told.forward <= found.forward - 1
    with pytest.raises(InputError, match=r"first_step=-0\.1"):
        Solver(name, first_step=-0.1)
    with pytest.raises(InputError, match="drop it"):
        Solver("rk4", step_size=0.1, first_step=0.1)


def test_quadratures_are_integrated_like_other_components(float64):
    """But for the values of theirs that f sees."""
    y, zero = torch.randn(5, 2), torch.zeros(5)

    def f(t, state):
        return -state[0] * (1 + t), state[0].square().sum(1)

    for solver in (Solver(), Solver("tsit5"), Solver("rk4", step_size=0.1)):
        with count_evals() as plain:
            expected = solver.integrate(f, (y, zero), 0, 1)
        with count_evals() as counted:
            found = solver.integrate(f, (y, zero), 0, 1, quadratures=1)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        assert plain == counted


@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
def test_stages_that_lead_to_others_only_need_no_quadratures(gradient, float64):
    """The second stage of dopri5: with the velocity alone there, all steps, ends and gradients are the same."""
    y, zero = torch.randn(5, 2), torch.zeros(5)
    alone = []

    def rate(t, x):
        return -x * (1 + t)

    def f(t, state):
        return rate(t, state[0]), state[0].square().sum(1)

    def moving(t, state):
        alone.append(float(t))
        return (rate(t, state[0]),)

    found = []
    for more in ({}, {"moving": moving}):
        x = y.clone().requires_grad_()
        end = Solver(gradient=gradient).integrate(f, (x, zero), 0, 1, quadratures=1, **more)
        (end[0].sum() + end[1].square().sum()).backward()
        found.append((*end, x.grad))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert alone
