"""Butcher tableaus of the explicit one-step methods that :mod:`anode.runge_kutta` implements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.polynomial import Polynomial
from torch import Tensor

Components = tuple[Tensor, ...]
State = Tensor | Components
Slopes = Sequence[Components]


@dataclass(frozen=True)
class Tableau:
    """A Runge-Kutta method: k_i = f(t + c_i h, y + h sum_j a_ij k_j), y(t + h) = y + h sum_i b_i k_i.

    A method with an error estimate is adaptive. It has one more slope, f(t + h, y(t + h)), with which the next step
    begins (first same as last, FSAL).

    Attributes:
        order: order of the solution.
        c: nodes of the stages.
        a: weights of the earlier slopes in each stage.
        b: weights of the slopes in the solution.
        b_error: weights of all slopes, the FSAL slope included, in the error estimate of an adaptive method.
        b_dense: coefficients, from the first power up, of the polynomials b_i of the dense output of an adaptive
            method, y(t + s h) = y + h sum_i b_i(s) k_i.
        slope_nodes: nodes of a step, from 0 to 1, at which ``slopes_at`` approximates the slope of the solution; empty
            if a step does not have such slopes.
        slopes_at: computes the slopes at ``slope_nodes``, of second order or more, from all slopes of a step.
        stages_outside_b: stages whose slopes enter later stages only: not the solution, its error or the dense output.
    """

    order: int
    c: Sequence[float]
    a: Sequence[Sequence[float]]
    b: Sequence[float]
    b_error: Sequence[float] = ()
    b_dense: Sequence[Sequence[float]] = ()
    slope_nodes: Sequence[float] = ()
    slopes_at: Callable[[Slopes], Slopes] = list
    stages_outside_b: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.c)
        used = [weights for weights in (self.b, self.b_error, *zip(*self.b_dense, strict=True)) if weights]
        outside = frozenset(i for i in range(1, n) if not any(weights[i] for weights in used))
        object.__setattr__(self, "stages_outside_b", outside)  # the class is frozen


def _slopes_of_second_order(slopes: Slopes) -> Slopes:
    """Select the first, third, fourth and last slope; the second one is of first order."""
    return [slopes[0], slopes[2], slopes[3], slopes[-1]]


def _slopes_at_ends(slopes: Slopes) -> Slopes:
    """Extrapolate the slopes of Kutta's rule to both ends of the step.

    The line goes through the mean of the first two slopes and the mean of the last two. The errors of the stages
    cancel in its rise, which is of second order; the last slope alone is of first.
    """
    early, late = ([(a + b) / 2 for a, b in zip(*pair, strict=True)] for pair in (slopes[:2], slopes[2:]))
    rises = [(b - a) / 4 for a, b in zip(early, late, strict=True)]  # per sixth of a step: the means are at 1/6 and 5/6
    return [
        tuple(a - rise for a, rise in zip(early, rises, strict=True)),
        tuple(b + rise for b, rise in zip(late, rises, strict=True)),
    ]


# Dormand, Prince 1980; Shampine 1986 (dense output, and the error estimate, two thirds of the original one, as in
# torchdiffeq).
DOPRI5 = Tableau(
    order=5,
    c=(0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1),
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    b=(35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    b_error=tuple(
        2 / 3 * weight for weight in (-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
    ),
    b_dense=(
        (1, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0, 0, 0, 0),
        (0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
        (0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
    slope_nodes=(0, 3 / 10, 4 / 5, 1),
    slopes_at=_slopes_of_second_order,
)


def _polynomial(scale: float, *factors: Sequence[float]) -> list[float]:
    """Expand a product of polynomials without constant term; coefficients from the first power to the fourth."""
    product = np.prod([Polynomial(factor) for factor in factors]) * scale
    return np.pad(product.coef, (0, 5 - len(product.coef)))[1:].tolist()


# Tsitouras 2011, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption.
TSIT5 = Tableau(
    order=5,
    c=(0, 0.161, 0.327, 0.9, 0.9800255409045097, 1),
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    ),
    b=(0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
    b_error=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        0.015151515151515152,
    ),
    b_dense=(
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
    slope_nodes=(0, 0.327, 0.9, 1),
    slopes_at=_slopes_of_second_order,
)

TABLEAUS = {
    "dopri5": DOPRI5,
    "tsit5": TSIT5,
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
        slope_nodes=(0, 1),
        slopes_at=_slopes_at_ends,
    ),
}
