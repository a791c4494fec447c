"""Dormand-Prince 5(4) with little overhead: a small field is evaluated several times as fast as by torchdiffeq.

The steps are those of torchdiffeq's ``dopri5``, so that numbers of evaluations compare: the same first step, error
estimate and controller. Step sizes are plain numbers; gradients flow through the stages of the accepted steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from scipy.integrate import RK45
from torch import Tensor

from anode.errors import InputError

Components = tuple[Tensor, ...]
Slope = Callable[[float, Components], Components]
AfterStep = Callable[[Sequence[float], Sequence[Components], float], None]

ORDER = 5
NODES: list[float] = RK45.C.tolist()
STAGES: list[list[float]] = [row[:i].tolist() for i, row in enumerate(RK45.A)]
SOLUTION: list[float] = RK45.B.tolist()  # the stage of the next step's first slope, so one evaluation is saved
ERROR: list[float] = (2 / 3 * RK45.E).tolist()  # Shampine's estimate is two thirds of Dormand and Prince's
DENSE: list[list[float]] = RK45.P.tolist()  # polynomials of the interpolation, of fourth order
SHOWN = (0, 2, 3)  # stages whose states are of second order at least, beside the last
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0


def dopri5(
    f: Slope,
    y0: Components,
    times: Sequence[float],
    rtol: float,
    atol: float,
    before_step: Callable[[float, Components, float], None],
    after_step: AfterStep | None = None,
    passive: int = 0,
) -> list[Components]:
    """Solve dy/dt = f(t, y), y(times[0]) = y0, with adaptive steps of which the last ends on the last time.

    The error of each component is its own root mean square relative to atol + rtol |y|; the largest controls the step.

    Args:
        f: the right-hand side.
        y0: initial components.
        times: strictly monotone; all but the first and last are interpolated.
        rtol: relative tolerance.
        atol: absolute tolerance.
        before_step: called with t, y and the step size before every step; raises where the solve must end.
        after_step: called after every accepted step with some nodes of it, from 0 to 1, the slopes there, which are of
            second order, and its size.
        passive: the last so many components have no part in the choice of steps.

    Returns:
        The components at every time.

    Raises:
        InputError: when f returns components of other shapes than y0.

    References:
        Dormand, Prince 1980; Shampine 1986 (error estimate, interpolation); Hairer, Norsett, Wanner 1993, section II.4.
    """
    t, end = times[0], times[-1]
    y, first = y0, f(t, y0)
    check_shapes(y0, first)
    active = slice(len(y0) - passive)
    step = _first_step(f, t, y, first, math.copysign(1.0, end - t), rtol, atol, active)
    path, asked = [y0], list(times[1:])
    while True:
        before_step(t, y, step)
        last = abs(step) >= abs(end - t)
        if last:
            step = end - t
        slopes, after = _stages(f, t, y, first, step)
        ratio = _error_ratio([k[active] for k in slopes], step, y[active], after[active], rtol, atol)
        if ratio <= 1:
            reached = end if last else t + step
            while len(asked) > 1 and abs(asked[0] - t) <= abs(reached - t):
                path.append(_interpolated(y, slopes, step, (asked.pop(0) - t) / step))
            if after_step is not None:
                after_step([NODES[i] for i in SHOWN] + [1.0], [slopes[i] for i in SHOWN] + slopes[-1:], step)
            t, y, first = reached, after, slopes[-1]
            if last:
                return [*path, y]
        step *= _growth(ratio)


def _stages(f: Slope, t: float, y: Components, first: Components, step: float) -> tuple[list[Components], Components]:
    """The seven slopes of a step, and the state after it."""
    slopes = [first]
    for node, weights in zip(NODES[1:], STAGES[1:], strict=True):
        slopes.append(f(t + node * step, plus(y, slopes, weights, step)))
    after = plus(y, slopes, SOLUTION, step)
    return [*slopes, f(t + step, after)], after


def plus(y: Components, slopes: Sequence[Components], weights: Sequence[float], step: float) -> Components:
    """The state y + step * sum_i weights_i slopes_i."""
    parts = list(y)
    for weight, k in zip(weights, slopes, strict=True):
        if weight:
            for i, rate in enumerate(k):
                parts[i] = torch.add(parts[i], rate, alpha=step * weight)
    return tuple(parts)


def _interpolated(y: Components, slopes: Sequence[Components], step: float, share: float) -> Components:
    weights = [sum(factor * share ** (i + 1) for i, factor in enumerate(row)) for row in DENSE]
    return plus(y, slopes, weights, step)


@torch.no_grad()
def _error_ratio(
    slopes: Sequence[Components], step: float, y: Components, after: Components, rtol: float, atol: float
) -> float:
    """The error of a step over the tolerated one; infinite where it is not a number."""
    error = plus(tuple(torch.zeros_like(part) for part in y), slopes, ERROR, step)
    scale = tuple(
        torch.maximum(before.abs(), now.abs()).mul_(rtol).add_(atol) for before, now in zip(y, after, strict=True)
    )
    ratio = _norm(error, scale)
    return ratio if math.isfinite(ratio) else math.inf


def _growth(ratio: float) -> float:
    if ratio == 0:
        return GROW
    return min(GROW, max(SAFETY / ratio ** (1 / ORDER), 1.0 if ratio < 1 else SHRINK))


def _first_step(
    f: Slope,
    t: float,
    y: Components,
    first: Components,
    sign: float,
    rtol: float,
    atol: float,
    active: slice,
) -> float:
    """The first step, in the direction of ``sign``, from the state, its slope and one explicit Euler step."""
    scale = tuple(part.abs().mul_(rtol).add_(atol) for part in y[active])
    size, speed = _norm(y[active], scale), _norm(first[active], scale)
    if not math.isfinite(size + speed):
        return 0.0  # no step can be taken
    trial = 1e-6 if size < 1e-5 or speed < 1e-5 else 0.01 * size / speed
    second = f(t + sign * trial, plus(y, [first], [1.0], sign * trial))
    change = tuple(after - before for before, after in zip(first[active], second[active], strict=True))
    bend = _norm(change, scale) / trial
    if not math.isfinite(bend):
        return sign * trial
    if max(speed, bend) <= 1e-15:
        return sign * max(1e-6, 1e-3 * trial)
    return sign * min(100 * trial, (0.01 / max(speed, bend)) ** (1 / ORDER))


@torch.no_grad()
def _norm(parts: Components, scale: Components) -> float:
    """The largest root mean square of the components over their scales."""
    norms = [(part / unit).square().mean().sqrt() for part, unit in zip(parts, scale, strict=True) if part.numel()]
    return float(torch.stack(norms).max()) if norms else 0.0


def check_shapes(y: Components, rates: Components) -> None:
    """Raise an :class:`InputError` unless rates are shaped like the state."""
    got, wanted = ([tuple(part.shape) for part in parts] for parts in (rates, y))
    if got != wanted:
        raise InputError(f"f returns components of shapes {got} for a state of shapes {wanted}: make them alike")
