"""Runge-Kutta of fixed steps with little overhead, beside the adaptive one of :mod:`anode.runge_kutta`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from anode.runge_kutta import AfterStep, Components, Slope, check_shapes, plus

# Kutta's 3/8 rule, which torchdiffeq calls rk4: nodes, stages, solution.
NODES: list[float] = [0, 1 / 3, 2 / 3, 1]
STAGES: list[list[float]] = [[], [1 / 3], [-1 / 3, 1], [1, -1, 1]]
SOLUTION: list[float] = [1 / 8, 3 / 8, 3 / 8, 1 / 8]


def rk4(
    f: Slope,
    y0: Components,
    grid: Sequence[float],
    before_step: Callable[[float, Components, float], None],
    after_step: AfterStep | None = None,
) -> list[Components]:
    """Solve dy/dt = f(t, y), y(grid[0]) = y0, by steps from each time of the grid to the next.

    Args:
        f: the right-hand side.
        y0: initial components.
        grid: strictly monotone times.
        before_step: called with t, y and the step size before every step; raises where the solve must end.
        after_step: called after every step with the nodes 0 and 1, the slopes there, and the step size.

    Returns:
        The components at every time.

    Raises:
        InputError: when f returns components of other shapes than y0.

    References:
        Kutta 1901; Hairer, Norsett, Wanner 1993, table II.1.2.
    """
    path = [y0]
    for t, after in pairwise(grid):
        y, step = path[-1], after - t
        before_step(t, y, step)
        slopes: list[Components] = []
        for node, weights in zip(NODES, STAGES, strict=True):
            slopes.append(f(t + node * step, plus(y, slopes, weights, step)))
            check_shapes(y, slopes[-1])
        if after_step is not None:
            after_step([0.0, 1.0], _at_the_ends(slopes), step)
        path.append(plus(y, slopes, SOLUTION, step))
    return path


def _at_the_ends(slopes: Sequence[Components]) -> list[Components]:
    """The slopes at both ends of a step, by the line through the means of the first two stages and of the last two.

    Errors of the stages cancel in the rise of that line, which is of second order; the last stage alone is of first.
    """
    early, late = ([(a + b) / 2 for a, b in zip(*pair, strict=True)] for pair in (slopes[:2], slopes[2:]))
    rises = [(b - a) / 4 for a, b in zip(early, late, strict=True)]  # per sixth of a step: the means are at 1/6 and 5/6
    return [
        tuple(a - rise for a, rise in zip(early, rises, strict=True)),
        tuple(b + rise for b, rise in zip(late, rises, strict=True)),
    ]
