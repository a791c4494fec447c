"""Coefficients of the one-step methods that :mod:`anode.runge_kutta` takes steps by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.polynomial import Polynomial
from scipy.integrate import RK45
from torch import Tensor

Components = tuple[Tensor, ...]
Slopes = Sequence[Components]


@dataclass(frozen=True)
class Tableau:
    """A Runge-Kutta method: k_i = f(t + nodes_i h, y + h sum_j stages_ij k_j), y(t + h) = y + h sum_i solution_i k_i.

    One with an estimate of its error is adaptive. It has one more slope, that at the end of the step, with which the
    next step begins (first same as last).

    Attributes:
        order: of the solution.
        nodes: of the stages.
        stages: weights of the slopes before each stage.
        solution: weights of the slopes.
        error: weights of all slopes in the estimate of the error; of adaptive methods.
        dense: the polynomials b_i, of coefficients from the first power on, with which y + h sum_i b_i(s) k_i is y(t +
            s h) within a step; of adaptive methods.
        seen_at: nodes of a step, from 0 to 1, at which its rates are seen as they change; none where they are not.
        seen: the rates there, made of the slopes, of second order at least.
    """

    order: int
    nodes: Sequence[float]
    stages: Sequence[Sequence[float]]
    solution: Sequence[float]
    error: Sequence[float] = ()
    dense: Sequence[Sequence[float]] = ()
    seen_at: Sequence[float] = ()
    seen: Callable[[Slopes], Slopes] = list

    @property
    def adaptive(self) -> bool:
        """Whether steps are chosen by the estimated error."""
        return len(self.error) > 0

    @cached_property
    def idle(self) -> frozenset[int]:
        """Stages that lead to others only: their slopes have no part in solution, error and interpolation."""
        n = len(self.nodes)
        used = [self.solution, *([self.error[:n]] if self.error else []), *zip(*self.dense[:n], strict=True)]
        return frozenset(i for i in range(1, n) if not any(weights[i] for weights in used))


def _of_second_order(slopes: Slopes) -> Slopes:
    """Those of the first, the third, the fourth and the last stage; the second one is of first order."""
    return [slopes[0], slopes[2], slopes[3], slopes[-1]]


def _at_the_ends(slopes: Slopes) -> Slopes:
    """The slopes at both ends of a step of Kutta's rule, by the line through the means of the first two and last two.

    Errors of the stages cancel in the rise of that line, which is of second order; the last stage alone is of first.
    """
    early, late = ([(a + b) / 2 for a, b in zip(*pair, strict=True)] for pair in (slopes[:2], slopes[2:]))
    rises = [(b - a) / 4 for a, b in zip(early, late, strict=True)]  # per sixth of a step: the means are at 1/6 and 5/6
    return [
        tuple(a - rise for a, rise in zip(early, rises, strict=True)),
        tuple(b + rise for b, rise in zip(late, rises, strict=True)),
    ]


# Dormand, Prince 1980; Shampine 1986 (interpolation, and the estimate of the error, two thirds of the original one,
# which torchdiffeq has).
DOPRI5 = Tableau(
    order=5,
    nodes=RK45.C.tolist(),
    stages=[row[:i].tolist() for i, row in enumerate(RK45.A)],
    solution=RK45.B.tolist(),
    error=(2 / 3 * RK45.E).tolist(),
    dense=RK45.P.tolist(),
    seen_at=(0, RK45.C[2], RK45.C[3], 1),
    seen=_of_second_order,
)


def _polynomial(scale: float, *factors: Sequence[float]) -> list[float]:
    """The coefficients, from the first power to the fourth, of a product of polynomials without constant term."""
    product = np.prod([Polynomial(factor) for factor in factors]) * scale
    return np.pad(product.coef, (0, 5 - len(product.coef)))[1:].tolist()


# Tsitouras 2011, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption.
TSIT5 = Tableau(
    order=5,
    nodes=(0, 0.161, 0.327, 0.9, 0.9800255409045097, 1),
    stages=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    ),
    solution=(
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
    ),
    error=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        0.015151515151515152,
    ),
    dense=(
        _polynomial(
            -1.0530884977290216, (0, 1), (-1.3299890189751412, 1), (0.7139816917074209, -1.4364028541716351, 1)
        ),
        _polynomial(0.1017, (0, 0, 1), (1.2949852507374631, -2.1966568338249754, 1)),
        _polynomial(2.490627285651252793, (0, 0, 1), (1.57803468208092486, -2.38535645472061657, 1)),
        _polynomial(-16.54810288924490272, (0, 0, 1), (-1.21712927295533244, 1), (-0.61620406037800089, 1)),
        _polynomial(47.37952196281928122, (0, 0, 1), (-1.203071208372362603, 1), (-0.658047292653547382, 1)),
        _polynomial(-34.87065786149660974, (0, 0, 1), (-1.2, 1), (-0.666666666666666667, 1)),
        _polynomial(2.5, (0, 0, 1), (-1, 1), (-0.6, 1)),
    ),
    seen_at=(0, 0.327, 0.9, 1),
    seen=_of_second_order,
)

ADAPTIVE = {"dopri5": DOPRI5, "tsit5": TSIT5}
FIXED = {
    "euler": Tableau(1, (0,), ((),), (1,)),
    "midpoint": Tableau(2, (0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    "heun2": Tableau(2, (0, 1), ((), (1,)), (1 / 2, 1 / 2)),
    "heun3": Tableau(3, (0, 1 / 3, 2 / 3), ((), (1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4)),
    # Kutta's 3/8 rule, which torchdiffeq calls rk4: Hairer, Norsett, Wanner 1993, table II.1.2.
    "rk4": Tableau(
        4,
        (0, 1 / 3, 2 / 3, 1),
        ((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
        seen_at=(0, 1),
        seen=_at_the_ends,
    ),
}
