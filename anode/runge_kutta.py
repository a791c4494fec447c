"""Runge-Kutta methods with little overhead: a small field is evaluated several times as fast as by torchdiffeq.

Methods that torchdiffeq has take the steps of torchdiffeq, so that numbers of evaluations compare: the same first step,
error estimate and controller. Step sizes are plain numbers; gradients flow through the stages of the accepted steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from anode.errors import InputError
from anode.tableaus import Components, Slopes, Tableau

Slope = Callable[[float, Components], Components]
Meter = Callable[[Sequence[float], Slopes, float], Tensor]

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0


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


class Watch(Protocol):
    """Who follows a solve; raises where it must end."""

    def callback_step(self, t: float, y: Components, dt: float) -> None:
        """Before every step."""
        ...

    def suit(self, size: float) -> None:
        """Told, after the first good step, what length would have suited it."""
        ...

    def reject_step(self, t: float, y: Components, dt: float) -> None:
        """After a step that was not good enough."""
        ...


@dataclass(frozen=True)
class Control:
    """How adaptive steps are chosen.

    The error of each component is its own root mean square relative to atol + rtol |y|; the largest controls the step.

    Attributes:
        rtol: relative tolerance.
        atol: absolute tolerance.
        first_step: length of the first step; None to find one.
        passive: the last so many components have no say.
    """

    rtol: float
    atol: float
    first_step: float | None = None
    passive: int = 0


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


class Solution(NamedTuple):
    """A solved ODE.

    Attributes:
        states: the components at every time that was asked for, but the first.
        metered: sum over the steps of what the meter made of them; None without a meter.
    """

    states: list[Components]
    metered: Tensor | None


def adaptive(
    stepper: Stepper,
    y0: Components,
    first: Components,
    times: Sequence[float],
    control: Control,
    watch: Watch,
    keep: Callable[[Step], None] | None = None,
) -> Solution:
    """Solve from y0 at the first of the times, by steps of which the last ends on the last time.

    Args:
        stepper: takes steps.
        y0: initial components.
        first: f(times[0], y0).
        times: strictly monotone; all but the first and last are interpolated.
        control: of the steps.
        watch: follows the solve.
        keep: takes the accepted steps.

    References:
        Hairer, Norsett, Wanner 1993, section II.4.
    """
    t, end, y = times[0], times[-1], y0
    deciding = slice(len(y0) - control.passive)
    size = _first_step(stepper.f, t, y, first, math.copysign(1.0, end - t), control, deciding)
    states: list[Components] = []
    metered, asked = None, list(times[1:-1])
    while True:
        watch.callback_step(t, y, size)
        last = abs(size) >= abs(end - t)
        if last:
            size = end - t
        slopes, after = stepper.stages(t, y, first, size)
        slopes += stepper.slope_after(t, after, size)
        rates = [k[deciding] for k in slopes]
        ratio = _error_ratio(stepper.tableau, rates, size, y[deciding], after[deciding], control)
        if ratio <= 1:
            reached, shares = end if last else t + size, []
            while asked and abs(asked[0] - t) <= abs(reached - t):
                shares.append((asked.pop(0) - t) / size)
            step = Step(t, y, size, tuple(shares), last)
            taken = stepper.outcome(step, slopes, after)
            if keep is not None:
                keep(step)
            states += taken.asked
            metered = added(metered, taken.metered)
            if y is y0:
                watch.suit(abs(size) * _growth(ratio, stepper.tableau.order))
            t, y, first = reached, after, slopes[-1]
            if last:
                return Solution(states, metered)
        else:
            watch.reject_step(t, y, size)
        size *= _growth(ratio, stepper.tableau.order)


def fixed(
    stepper: Stepper,
    y0: Components,
    first: Components,
    grid: Sequence[float],
    shown: Sequence[bool],
    watch: Watch,
    keep: Callable[[Step], None] | None = None,
) -> Solution:
    """Solve from y0 at the first time of a strictly monotone grid, by steps from each to the next.

    Args:
        stepper: takes steps.
        y0: initial components.
        first: f(grid[0], y0).
        grid: the times.
        shown: at which of them, after the first, the solution is asked for.
        watch: follows the solve.
        keep: takes the steps.
    """
    y, slope, metered = y0, first, None
    states: list[Components] = []
    for (t, after), asked in zip(pairwise(grid), shown, strict=True):
        step = Step(t, y, after - t, (), asked)
        watch.callback_step(t, y, step.size)
        taken = stepper.outcome(step, *stepper.stages(t, y, slope or stepper.f(t, y), step.size))
        if keep is not None:
            keep(step)
        states += taken.asked
        metered = added(metered, taken.metered)
        y, slope = taken.after, ()
    return Solution(states, metered)


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


def check_shapes(y: Components, rates: Components) -> None:
    """Raise an :class:`InputError` unless rates are shaped like the state."""
    got, wanted = ([tuple(part.shape) for part in parts] for parts in (rates, y))
    if got != wanted:
        raise InputError(f"f returns components of shapes {got} for a state of shapes {wanted}: make them alike")


def _interpolated(tableau: Tableau, step: Step, slopes: Slopes, share: float) -> Components:
    weights = [sum(factor * share ** (i + 1) for i, factor in enumerate(row)) for row in tableau.dense]
    return plus(step.y, slopes, weights, step.size)


@torch.no_grad()
def _error_ratio(
    tableau: Tableau, slopes: Slopes, size: float, y: Components, after: Components, control: Control
) -> float:
    """The error of a step over the tolerated one; infinite where it is not a number."""
    errors = plus(tuple(torch.zeros_like(part) for part in y), slopes, tableau.error, size)
    scale = tuple(
        torch.maximum(before.abs(), now.abs()).mul_(control.rtol).add_(control.atol)
        for before, now in zip(y, after, strict=True)
    )
    ratio = _norm(errors, scale)
    return ratio if math.isfinite(ratio) else math.inf


def _growth(ratio: float, order: int) -> float:
    if ratio == 0:
        return GROW
    return min(GROW, max(SAFETY / ratio ** (1 / order), 1.0 if ratio < 1 else SHRINK))


def _first_step(
    f: Slope, t: float, y: Components, first: Components, sign: float, control: Control, deciding: slice
) -> float:
    """The first step, in the direction of ``sign``, from the state, its slope and one explicit Euler step."""
    if control.first_step is not None:
        return sign * control.first_step
    scale = tuple(part.abs().mul_(control.rtol).add_(control.atol) for part in y[deciding])
    size, speed = _norm(y[deciding], scale), _norm(first[deciding], scale)
    if not math.isfinite(size + speed):
        return 0.0  # no step can be taken
    trial = 1e-6 if size < 1e-5 or speed < 1e-5 else 0.01 * size / speed
    second = f(t + sign * trial, plus(y, [first], [1.0], sign * trial))
    change = tuple(after - before for before, after in zip(first[deciding], second[deciding], strict=True))
    bend = _norm(change, scale) / trial
    if not math.isfinite(bend):
        return sign * trial
    if max(speed, bend) <= 1e-15:
        return sign * max(1e-6, 1e-3 * trial)
    return sign * min(100 * trial, (0.01 / max(speed, bend)) ** (1 / 5))


@torch.no_grad()
def _norm(parts: Components, scale: Components) -> float:
    """The largest root mean square of the components over their scales."""
    norms = [(part / unit).square().mean().sqrt() for part, unit in zip(parts, scale, strict=True) if part.numel()]
    return float(torch.stack(norms).max()) if norms else 0.0
