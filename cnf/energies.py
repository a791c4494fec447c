"""Energies of the paths that points take through an ODE: what training can keep small, so that solving is cheap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.func import jvp

from anode.tableaus import Slopes
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


def acceleration_of_step(nodes: Sequence[float], slopes: Slopes, step: float) -> Tensor:
    """The acceleration energy of one step of a solver, (B,), from slopes of state and log-density at nodes c of it.

    Only the components that were asked for are in the slopes, whatever their shapes (B, ...).

        sum over neighbouring nodes of |v(t + c' h) - v(t + c h)|^2 / ((c' - c) h)

    The mean acceleration between nodes takes the place of the acceleration, which costs no evaluation and changes the
    energy by a share of order h^2.
    """
    pieces = []
    for (c, before), (after_c, after) in pairwise(zip(nodes, slopes, strict=True)):
        changes = [_square(new - old) for old, new in zip(before, after, strict=True)]
        pieces.append(torch.stack(changes).sum(0) / math.fabs((after_c - c) * step))
    return torch.stack(pieces).sum(0)


def _square(x: Tensor) -> Tensor:
    return x.square().reshape(len(x), -1).sum(1)
