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
from anode.steps import Slope, Step, Stepper, Taken, added, plus
from anode.tableaus import Components, Slopes, Tableau

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0


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


class Solution(NamedTuple):
    """A solved ODE.

    Attributes:
        states: the components at every time that was asked for, but the first.
        metered: sum over the steps of what the meter made of them; None without a meter.
    """

    states: list[Components]
    metered: Tensor | None


class Problem(NamedTuple):
    """What to solve, and who takes part in it.

    Attributes:
        stepper: takes steps.
        y0: initial components.
        first: their rates.
        watch: follows the solve.
        keep: takes the accepted steps.
    """

    stepper: Stepper
    y0: Components
    first: Components
    watch: Watch
    keep: Callable[[Step], None] | None = None


def adaptive(problem: Problem, times: Sequence[float], control: Control) -> Solution:
    """Solve from the first of the times on, by steps of which the last ends on the last time.

    Args:
        problem: what to solve.
        times: strictly monotone; all but the first and last are interpolated.
        control: of the steps.

    References:
        Hairer, Norsett, Wanner 1993, section II.4.
    """
    stepper, y, first, watch, _ = problem
    t, end = times[0], times[-1]
    deciding = slice(len(y) - control.passive)
    size = _first_step(stepper.f, t, y, first, math.copysign(1.0, end - t), control, deciding)
    solution, asked = Solution([], None), list(times[1:-1])
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
            solution = _continued(solution, problem, step, stepper.outcome(step, slopes, after))
            if y is problem.y0:
                watch.suit(abs(size) * _growth(ratio, stepper.tableau.order))
            t, y, first = reached, after, slopes[-1]
            if last:
                return solution
        else:
            watch.reject_step(t, y, size)
        size *= _growth(ratio, stepper.tableau.order)


def fixed(problem: Problem, grid: Sequence[float], shown: Sequence[bool]) -> Solution:
    """Solve from the first time of a grid on, by steps from each to the next.

    Args:
        problem: what to solve.
        grid: the times, strictly monotone.
        shown: at which of them, after the first, the solution is asked for.
    """
    stepper, y, slope, watch, _ = problem
    solution = Solution([], None)
    for (t, after), asked in zip(pairwise(grid), shown, strict=True):
        step = Step(t, y, after - t, (), asked)
        watch.callback_step(t, y, step.size)
        taken = stepper.outcome(step, *stepper.stages(t, y, slope or stepper.f(t, y), step.size))
        solution = _continued(solution, problem, step, taken)
        y, slope = taken.after, ()
    return solution


def _continued(solution: Solution, problem: Problem, step: Step, taken: Taken) -> Solution:
    """The solution with one more step."""
    if problem.keep is not None:
        problem.keep(step)
    return Solution([*solution.states, *taken.asked], added(solution.metered, taken.metered))


def even_grid(times: Tensor, step_size: float) -> Tensor:
    """Even steps of at most ``step_size`` within each interval, so that every output time is a grid point."""
    pieces = []
    for start, end in pairwise(times.tolist()):
        steps = max(1, math.ceil(abs(end - start) / step_size - 1e-6))
        pieces.append(torch.linspace(start, end, steps + 1, dtype=times.dtype, device=times.device)[:-1])
    return torch.cat([*pieces, times[-1:]])


def check_shapes(y: Components, rates: Components) -> None:
    """Raise an :class:`InputError` unless rates are shaped like the state."""
    got, wanted = ([tuple(part.shape) for part in parts] for parts in (rates, y))
    if got != wanted:
        raise InputError(f"f returns components of shapes {got} for a state of shapes {wanted}: make them alike")


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
