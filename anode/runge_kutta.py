"""Runge-Kutta methods with little overhead: a small field is evaluated several times as fast as by torchdiffeq.

Methods that torchdiffeq has take the same steps as there, so that numbers of evaluations compare: the same first step,
error estimate and controller. Step sizes are plain numbers; gradients flow through the stages of the accepted steps.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anode.evaluations import RightHandSide
from anode.tableaus import Components, Slopes, Tableau

SAFETY, MIN_FACTOR, MAX_FACTOR = 0.9, 0.2, 10.0  # of the step factor


class ComponentRoles(NamedTuple):
    """Roles of the components of a state in a solve.

    Attributes:
        quadratures: number of trailing components that are integrals f does not depend on; f receives their values at
            the beginning of a step.
        f_state: f without the quadratures, from the other components to their slopes; evaluated in place of f at stages
            whose slopes enter later stages only, because it is cheaper.
        exclude_from_error: number of trailing components outside the error norm.
        on_step: called on every accepted step with some nodes from 0 to 1, the slopes there, and the step size; returns
            a number per sample, (B,). The sum over the steps is appended to the result.
    """

    quadratures: int = 0
    f_state: Callable[[Tensor, Any], Any] | None = None
    exclude_from_error: int = 0
    on_step: Callable[[Sequence[float], Slopes, float], Tensor] | None = None


class RowTimes(NamedTuple):
    """Times at which to save single rows of a batch.

    Attributes:
        times: increasing times (N,), or fractions of a step.
        rows: the row to save at each time, (N,).
    """

    times: Tensor
    rows: Tensor


class AcceptedStep(NamedTuple):
    """An accepted step, from which it can be replayed.

    Attributes:
        t, y, h: time and state at the beginning, and step size.
        save_at: where to save the solution within the step, as fractions of its size.
        save_end: True to save the solution at its end.
        save_rows: rows to save within the step, at fractions of its size.
    """

    t: float
    y: Components
    h: float
    save_at: tuple[float, ...] = ()
    save_end: bool = False
    save_rows: RowTimes | None = None


class Solution(NamedTuple):
    """The solution of an ODE.

    Attributes:
        states: the saved states, in the order of time.
        step_total: the sum of ``on_step`` over the steps, (B,); None without it.
    """

    states: list[Components]
    step_total: Tensor | None

    def extended(self, part: Solution) -> Solution:
        """Append the part of the solution that belongs to the next step."""
        return Solution([*self.states, *part.states], add_optional(self.step_total, part.step_total))


@dataclass(frozen=True)
class RungeKutta:
    """Steps of a Runge-Kutta method along dy/dt = f(t, y).

    Attributes:
        tableau: coefficients of the method.
        f: the right-hand side.
        roles: roles of the components of y.
    """

    tableau: Tableau
    f: RightHandSide
    roles: ComponentRoles

    def step(
        self, t: float, y: Components, h: float, k1: Components | None = None, fsal: bool = True
    ) -> tuple[list[Components], Components]:
        """Take one step.

        Args:
            t: time at the beginning.
            y: state at the beginning.
            h: step size.
            k1: first slope f(t, y), if it is known.
            fsal: evaluate the slope at the end, too, if the method is adaptive.

        Returns:
            The slopes of all stages and the state at the end.
        """
        tableau, n = self.tableau, len(y) - self.roles.quadratures
        slopes = [k1 or self.f(t, y)]
        for i in range(1, len(tableau.c)):
            time, state = t + tableau.c[i] * h, combine(y[:n], slopes, tableau.a[i], h)
            if self.roles.f_state is not None and i in tableau.stages_outside_b:
                slopes.append(self.f(time, state, self.roles.f_state))
            else:
                slopes.append(self.f(time, state + y[n:]))
        y1 = combine(y, slopes, tableau.b, h)
        if fsal and tableau.b_error:
            slopes.append(self.f(t + h, y1))
        return slopes, y1

    def replay(self, accepted: AcceptedStep) -> tuple[Solution, Components]:
        """Take an accepted step again: the part of the solution within it, and the state at its end."""
        dense = bool(accepted.save_at) or accepted.save_rows is not None
        needs_all_slopes = dense or self.roles.on_step is not None
        slopes, y1 = self.step(accepted.t, accepted.y, accepted.h, fsal=needs_all_slopes)
        return self.solution_within(accepted, slopes, y1), y1

    def solution_within(self, accepted: AcceptedStep, slopes: Slopes, y1: Components) -> Solution:
        """Evaluate the dense output and ``on_step`` of an accepted step from its slopes and its end."""
        states = []
        for s in accepted.save_at:
            b = [sum(coefficient * s ** (i + 1) for i, coefficient in enumerate(row)) for row in self.tableau.b_dense]
            states.append(combine(accepted.y, slopes, b, accepted.h))
        if accepted.save_rows is not None:
            states.append(self._rows_within(accepted, slopes, *accepted.save_rows))
        if accepted.save_end:
            states.append(y1)
        if self.roles.on_step is None:
            return Solution(states, None)
        tableau = self.tableau
        return Solution(states, self.roles.on_step(tableau.slope_nodes, tableau.slopes_at(slopes), accepted.h))

    def _rows_within(self, accepted: AcceptedStep, slopes: Slopes, at: Tensor, rows: Tensor) -> Components:
        """Evaluate the dense output of single rows at fractions of an accepted step, (N, *S) of each component."""
        powers = torch.stack([at ** (i + 1) for i in range(len(self.tableau.b_dense[0]))])
        parts = [part[rows] for part in accepted.y]
        for coefficients, slope in zip(self.tableau.b_dense, slopes, strict=True):
            if any(coefficients):
                b = accepted.h * (powers.new_tensor(coefficients) @ powers)
                parts = [
                    part + b.to(part.dtype).view(-1, *[1] * (part.ndim - 1)) * k[rows]
                    for part, k in zip(parts, slope, strict=False)
                ]
        return tuple(parts)


def solve_adaptive(
    method: RungeKutta,
    y0: Components,
    k1: Components,
    times: Sequence[float],
    rtol: float,
    atol: float,
    first_step: float | None = None,
    on_accept: Callable[[AcceptedStep], None] | None = None,
    rows: RowTimes | None = None,
) -> Solution:
    """Solve an ODE by adaptive steps, the last of which lands on the last time.

    The error norm is the largest root mean square of a component of the error relative to atol + rtol max(|y|, |y1|); a
    step is accepted if it is at most 1.

    Args:
        method: takes the steps.
        y0: initial state.
        k1: initial slope.
        times: strictly monotone times; all but the first and last are interpolated by the dense output.
        rtol: relative tolerance.
        atol: absolute tolerance.
        first_step: length of the first step; chosen by an evaluation when omitted.
        on_accept: receives the accepted steps.
        rows: single rows to save in a solve that goes forward.

    Returns:
        The states at all times but the first. With ``rows`` each step saves one state of its rows, and the last step
        its end.

    References:
        Hairer, Norsett, Wanner 1993, section II.4.
    """
    t, end, y = times[0], times[-1], y0
    tableau, n = method.tableau, len(y0) - method.roles.exclude_from_error
    h = math.copysign(1.0, end - t)
    h = _initial_step(method.f, t, y0, k1, h, rtol, atol, n) if first_step is None else h * first_step
    solution, pending = Solution([], None), list(times[1:-1])
    row_times, saved = [] if rows is None else rows.times.tolist(), 0
    while True:
        method.f.callback_step(t, y, h)
        last = abs(h) >= abs(end - t)
        if last:
            h = end - t
        slopes, y1 = method.step(t, y, h, k1)
        error = _error_norm(slopes, tableau.b_error, h, y[:n], y1[:n], rtol, atol)
        if error <= 1:
            t1, save_at = end if last else t + h, []
            while pending and abs(pending[0] - t) <= abs(t1 - t):
                save_at.append((pending.pop(0) - t) / h)
            save_rows, part = None, slice(saved, bisect_right(row_times, t1))
            if rows is not None and part.stop > part.start:
                save_rows, saved = RowTimes((rows.times[part] - t) / h, rows.rows[part]), part.stop
            accepted = AcceptedStep(t, y, h, tuple(save_at), last, save_rows)
            solution = solution.extended(method.solution_within(accepted, slopes, y1))
            if on_accept is not None:
                on_accept(accepted)
            if last:
                return solution
            t, y, k1 = t1, y1, slopes[-1]
        h *= _step_factor(error, tableau.order)


def solve_fixed(
    method: RungeKutta,
    y0: Components,
    k1: Components,
    times: Sequence[float],
    step_size: float,
    on_accept: Callable[[AcceptedStep], None] | None = None,
) -> Solution:
    """Solve an ODE by even steps of at most ``step_size`` between neighbouring times; see :func:`solve_adaptive`."""
    y, slope, solution = y0, k1, Solution([], None)
    for start, end in pairwise(times):
        for t, t1 in pairwise(even_grid(start, end, step_size)):
            accepted = AcceptedStep(t, y, t1 - t, save_end=t1 == end)
            method.f.callback_step(t, y, accepted.h)
            slopes, y1 = method.step(t, y, accepted.h, slope)
            solution = solution.extended(method.solution_within(accepted, slopes, y1))
            if on_accept is not None:
                on_accept(accepted)
            y, slope = y1, None
    return solution


def even_grid(start: float, end: float, step_size: float) -> list[float]:
    """Divide an interval evenly into steps of at most ``step_size``; both ends included."""
    steps = max(1, math.ceil(abs(end - start) / step_size - 1e-6))
    return torch.linspace(start, end, steps + 1, dtype=torch.float64).tolist()


def combine(y: Components, slopes: Slopes, weights: Sequence[float], h: float) -> Components:
    """Compute y + h sum_i weights_i slopes_i; components of the slopes beyond those of y are left out."""
    parts = list(y)
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            factor = h * weight
            for i in range(len(parts)):
                parts[i] = torch.add(parts[i], slope[i], alpha=factor)
    return tuple(parts)


def add_optional(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Add two tensors, each of which may be missing."""
    return b if a is None else a if b is None else a + b


def _step_factor(error: float, order: int) -> float:
    """Return the factor of the next step size."""
    if error == 0:
        return MAX_FACTOR
    return min(MAX_FACTOR, max(SAFETY / error ** (1 / order), 1.0 if error < 1 else MIN_FACTOR))


@torch.no_grad()
def _error_norm(
    slopes: Slopes, b_error: Sequence[float], h: float, y: Components, y1: Components, rtol: float, atol: float
) -> float:
    """Return the error of a step over the tolerance; infinity if it is not a number."""
    errors = combine(tuple(torch.zeros_like(part) for part in y), slopes, b_error, h)
    scale = tuple(
        torch.maximum(before.abs(), after.abs()).mul_(rtol).add_(atol) for before, after in zip(y, y1, strict=True)
    )
    error = _scaled_norm(errors, scale)
    return error if math.isfinite(error) else math.inf


@torch.no_grad()
def _scaled_norm(parts: Components, scale: Components) -> float:
    """Return the largest root mean square of the components over their scales."""
    squares = [(part / unit).square_().mean() for part, unit in zip(parts, scale, strict=True) if part.numel()]
    return float(torch.stack(squares).max().sqrt()) if squares else 0.0


@torch.no_grad()
def _initial_step(
    f: RightHandSide, t: float, y: Components, k1: Components, sign: float, rtol: float, atol: float, n: int
) -> float:
    """Choose the first step from one explicit Euler step and the first n components; negative to go back in time."""
    scale = tuple(part.abs().mul_(rtol).add_(atol) for part in y[:n])
    d0, d1 = _scaled_norm(y[:n], scale), _scaled_norm(k1[:n], scale)
    if not math.isfinite(d0 + d1):
        return 0.0  # no step can be taken
    h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    k2 = f(t + sign * h0, combine(y, [k1], [1.0], sign * h0))
    d2 = _scaled_norm(tuple(after - before for before, after in zip(k1[:n], k2[:n], strict=True)), scale) / h0
    if not math.isfinite(d2):
        return sign * h0
    if max(d1, d2) <= 1e-15:
        return sign * max(1e-6, 1e-3 * h0)
    return sign * min(100 * h0, (0.01 / max(d1, d2)) ** (1 / 5))
