"""Coefficients against the conditions they have to meet."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import RK45

from anode.tableaus import TABLEAUS

ADAPTIVE = [name for name, tableau in TABLEAUS.items() if tableau.b_error]


def whole(tableau):
    """Nodes, matrix and weights, with the last stage of an adaptive method."""
    n = len(tableau.c)
    matrix, nodes, weights = np.zeros((n, n)), np.array(tableau.c), np.array(tableau.b)
    for i, row in enumerate(tableau.a):
        matrix[i, : len(row)] = row
    if tableau.b_error:
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


@pytest.mark.parametrize("name", TABLEAUS)
def test_methods_have_their_order(name):
    tableau = TABLEAUS[name]
    nodes, matrix, weights = whole(tableau)
    np.testing.assert_allclose(matrix.sum(1), nodes, atol=1e-13)
    for phi, gamma, _ in conditions(nodes, matrix, tableau.order):
        assert weights @ phi == pytest.approx(1 / gamma, abs=1e-13)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_error_is_that_of_a_method_of_one_order_less(name):
    tableau = TABLEAUS[name]
    nodes, matrix, _ = whole(tableau)
    error = np.array(tableau.b_error)
    for phi, _, _ in conditions(nodes, matrix, 4):
        assert error @ phi == pytest.approx(0, abs=1e-13)
    assert max(abs(error @ phi) for phi, _, of in conditions(nodes, matrix, 5) if of == 5) > 1e-6


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
def test_interpolation_has_order_four_within_a_step(name, share):
    tableau = TABLEAUS[name]
    nodes, matrix, weights = whole(tableau)
    inside = np.array([sum(b * share ** (j + 1) for j, b in enumerate(row)) for row in tableau.b_dense])
    for phi, gamma, of in conditions(nodes, matrix, 4):
        assert inside @ phi == pytest.approx(share**of / gamma, abs=1e-12)
    if share == 1:
        np.testing.assert_allclose(inside, weights, atol=1e-12)


@pytest.mark.parametrize("name", ["dopri5", "tsit5", "rk4"])
def test_slopes_at_nodes_are_of_second_order(name, float64):
    """On y' = y the slope at a node s of a step h is exp(s h) up to order h^3."""
    tableau, errors = TABLEAUS[name], []
    for h in (0.1, 0.05):
        slopes = []
        for row in (*tableau.a, *([tableau.b] if tableau.b_error else [])):
            slopes.append((torch.ones(1) + h * sum(weight * k[0] for weight, k in zip(row, slopes, strict=True)),))
        seen = tableau.slopes_at(slopes)
        assert len(seen) == len(tableau.slope_nodes)
        pairs = zip(tableau.slope_nodes, seen, strict=True)
        errors.append(max(abs(float(k[0]) - math.exp(s * h)) for s, k in pairs))
    assert math.log2(errors[0] / errors[1]) > 1.9


def test_dopri5_is_that_of_scipy():
    tableau = TABLEAUS["dopri5"]
    for ours, theirs in ((tableau.c, RK45.C), (tableau.b, RK45.B), (tableau.b_dense, RK45.P)):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(tableau.b_error, 2 / 3 * RK45.E)
    for ours, theirs in zip(tableau.a, RK45.A, strict=True):
        np.testing.assert_array_equal(ours, theirs[: len(ours)])


def test_the_second_stage_of_dopri5_enters_later_stages_only():
    assert TABLEAUS["dopri5"].stages_outside_b == {1}
    assert TABLEAUS["midpoint"].stages_outside_b == set()
