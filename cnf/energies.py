"""Energies of the paths that points take through an ODE: what training can keep small, so that solving is cheap."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp

from anode.runge_kutta import Components
from cnf.divergence import Rates

RatesOf = Callable[[Tensor, Tensor], Rates]


def rate(name: str, rates: RatesOf, t: Tensor, x: Tensor, found: Rates) -> Tensor:
    """What an energy grows by per unit of time at a point of the path, (B,).

    Args:
        name: ``"kinetic"``, ``"frobenius"`` or ``"acceleration"``; see :class:`~cnf.Continuous`.
        rates: velocity and divergence as functions of time and state.
        t: time, ``()``.
        x: state, (B, *S).
        found: ``rates(t, x)``, with the norm of the Jacobian for ``"frobenius"``.
    """
    if name == "kinetic":
        return 0.5 * _square(found.velocity)
    if name == "frobenius":
        assert found.frobenius is not None
        return found.frobenius
    along: Rates = jvp(lambda t, x: rates(t, x)[:2], (t, x), (torch.ones_like(t), found.velocity))[1]
    return _square(along[0]) + along[1].square()


def turn(first: Components, last: Components, step: float) -> Tensor:
    """The acceleration energy of one step of a solver, (B,), from the slopes of velocity and log-density at its ends.

        h |a|^2 = |v(t + h) - v(t)|^2 / h,        a = (v(t + h) - v(t)) / h

    The mean acceleration over the step takes the place of the acceleration, which costs no evaluation. The energy is
    thereby too small by a share of order h^2.
    """
    velocity, divergence = (after - before for before, after in zip(first[:2], last[:2], strict=True))
    return (_square(velocity) + divergence.square()) / math.fabs(step)


def _square(x: Tensor) -> Tensor:
    return x.square().flatten(1).sum(1)
