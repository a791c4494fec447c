"""One step of a Runge-Kutta method: its stages, what it leads to, and how it is taken again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from anode.tableaus import Components, Slopes, Tableau

Slope = Callable[[float, Components], Components]
Meter = Callable[[Sequence[float], Slopes, float], Tensor]


class Step(NamedTuple):
    """An accepted step: all it takes to take it again.

    Attributes:
        t: where it begins.
        y: the components there.
        size: of the step.
        shares: of its size, where the solution is asked for within the step.
        shown: whether it is asked for at its end.
    """

    t: float
    y: Components
    size: float
    shares: tuple[float, ...] = ()
    shown: bool = False


class Taken(NamedTuple):
    """What a step leads to.

    Attributes:
        asked: the components where they are asked for, in the order of time.
        after: the components at its end.
        metered: see :class:`Stepper`; None without a meter.
    """

    asked: list[Components]
    after: Components
    metered: Tensor | None


@dataclass(frozen=True)
class Stepper:
    """Steps of a method along dy/dt = f(t, y).

    Attributes:
        tableau: of the method.
        f: the right-hand side.
        quadratures: the last so many components are integrals along the way, which f does not depend on; it is passed
            their values at the beginning of the step.
        moving: f without the quadratures, of the components and to the rates that are left; evaluated at stages whose
            slopes lead to others only.
        meter: makes of every accepted step a number a sample, whose sums over the steps are wanted. Called with nodes
            of the step, from 0 to 1, the rates there, and its size.
    """

    tableau: Tableau
    f: Slope
    quadratures: int = 0
    moving: Slope | None = None
    meter: Meter | None = None

    def stages(self, t: float, y: Components, first: Components, size: float) -> tuple[list[Components], Components]:
        """The slopes of a step, of which the first is known, and the components after it."""
        tableau, n = self.tableau, len(y) - self.quadratures
        slopes = [first]
        for i in range(1, len(tableau.nodes)):
            time, state = t + tableau.nodes[i] * size, plus(y[:n], slopes, tableau.stages[i], size)
            if self.moving is not None and i in tableau.idle:
                slopes.append(self.moving(time, state))
            else:
                slopes.append(self.f(time, state + y[n:]))
        return slopes, plus(y, slopes, tableau.solution, size)

    def slope_after(self, t: float, after: Components, size: float) -> list[Components]:
        """The last slope of a step of an adaptive method; of others there is none."""
        return [self.f(t + size, after)] if self.tableau.adaptive else []

    def outcome(self, step: Step, slopes: Slopes, after: Components) -> Taken:
        """What a step with such slopes leads to."""
        asked = [_interpolated(self.tableau, step, slopes, share) for share in step.shares]
        metered = None
        if self.meter is not None:
            metered = self.meter(self.tableau.seen_at, self.tableau.seen(slopes), step.size)
        return Taken([*asked, after] if step.shown else asked, after, metered)

    def again(self, step: Step) -> Taken:
        """Take a step once more."""
        slopes, after = self.stages(step.t, step.y, self.f(step.t, step.y), step.size)
        if step.shares or self.meter is not None:
            slopes += self.slope_after(step.t, after, step.size)
        return self.outcome(step, slopes, after)


def plus(y: Components, slopes: Slopes, weights: Sequence[float], size: float) -> Components:
    """The components y + size * sum_i weights_i slopes_i, of slopes of as many components or more."""
    parts = list(y)
    for weight, k in zip(weights, slopes, strict=True):
        if weight:
            for i, rate in enumerate(k[: len(parts)]):
                parts[i] = torch.add(parts[i], rate, alpha=size * weight)
    return tuple(parts)


def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of what there is."""
    return b if a is None else a if b is None else a + b


def _interpolated(tableau: Tableau, step: Step, slopes: Slopes, share: float) -> Components:
    weights = [sum(factor * share ** (i + 1) for i, factor in enumerate(row)) for row in tableau.dense]
    return plus(step.y, slopes, weights, step.size)
