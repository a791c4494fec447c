"""The numerics of an ODE solve as one value: method, tolerances, gradient mode; and failures in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anode import by_torchdiffeq
from anode.checkpoint import solve_checkpointed
from anode.errors import InputError
from anode.evaluations import listening
from anode.graph import check_independent, check_listed
from anode.right_hand_side import RightHandSide, State
from anode.runge_kutta import Control, Problem, Solution, adaptive, check_shapes, even_grid, fixed
from anode.steps import Meter, Step, Stepper
from anode.tableaus import ADAPTIVE, FIXED, Components

OTHER_ADAPTIVE = ("dopri8", "bosh3", "fehlberg2", "adaptive_heun")  # torchdiffeq's
OTHER_FIXED = ("explicit_adams", "implicit_adams")
ADAPTIVE_METHODS = (*ADAPTIVE, *OTHER_ADAPTIVE)
FIXED_METHODS = (*FIXED, *OTHER_FIXED)
GRADIENTS = ("checkpoint", "direct", "adjoint")


class Along(NamedTuple):
    """What there is to know of the components of a state; see :meth:`Solver.integrate`."""

    quadratures: int = 0
    moving: Callable[[Tensor, Any], Any] | None = None
    passive: int = 0
    meter: Meter | None = None


@dataclass(frozen=True)
class Solver:
    """How an ODE is solved: a value to compare, print and store.

    The error of an adaptive step is measured for each component of a tuple state by its own root mean square, and
    the largest controls the step, so that easy components never dilute the error of the others. The last step lands
    on the end time instead of interpolating past it.

    Attributes:
        method: adaptive (``dopri5``, ``tsit5``, ``dopri8``, ``bosh3``, ``fehlberg2``, ``adaptive_heun``) or of fixed
            step (``euler``, ``midpoint``, ``heun2``, ``heun3``, ``rk4``, ``explicit_adams``, ``implicit_adams``).
            ``dopri8``, ``bosh3``, ``fehlberg2``, ``adaptive_heun`` and ``..._adams`` are torchdiffeq's, and so are all
            with adjoint gradients; the others take the same steps with less overhead.
        rtol: relative tolerance of an adaptive method, per step.
        atol: absolute tolerance of an adaptive method, per step, in the units of the state.
        step_size: largest step of a fixed-step method; the steps divide each interval evenly.
        first_step: length of the first step of an adaptive method; found by an evaluation when omitted.
        max_steps: a solve that needs more steps than this, rejected ones included, is a :class:`SolverError`.
        gradient: ``"direct"`` backpropagates through the steps: exact gradients of the discrete solution, memory
            that grows with the steps; the fastest. ``"checkpoint"`` gives the same gradients in the memory of one step,
            taking each step again in the backward pass. ``"adjoint"`` solves the continuous adjoint equation backwards:
            gradients up to the tolerance, parameters left out of the error control (seminorm). When omitted, it is
            ``"checkpoint"``, or ``"direct"`` for the methods of torchdiffeq, which keep no checkpoints.

    Raises:
        InputError: for an unknown method or gradient, a number out of range, or choices that exclude each other.

    References:
        Chen, Rubanova, Bettencourt, Duvenaud 2018, arXiv 1806.07366 (adjoint); Kidger, Chen, Lyons 2021,
        arXiv 2009.09457 (seminorm); Zhuang et al. 2020, arXiv 2006.02493 (checkpoints).
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    step_size: float | None = None
    max_steps: int = 1000
    gradient: str | None = None
    first_step: float | None = None

    def __post_init__(self) -> None:
        methods = ADAPTIVE_METHODS + FIXED_METHODS
        if self.method not in methods:
            raise InputError(f"method={self.method!r} is unknown; choose one of {', '.join(methods)}")
        self._check_gradient()
        for name in ("rtol", "atol", "step_size", "first_step"):
            value = getattr(self, name)
            if name in ("step_size", "first_step") and value is None:
                continue
            if not (isinstance(value, (int, float)) and value > 0 and math.isfinite(value)):
                raise InputError(f"{name}={value} must be a positive number, such as 1e-5 for a tolerance")
        if not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise InputError(f"max_steps={self.max_steps} must be a whole number from 1")
        if self.adaptive and self.step_size is not None:
            raise InputError(
                f"step_size={self.step_size} has no effect on the adaptive method {self.method!r}; drop it"
            )
        if not self.adaptive and self.step_size is None:
            raise InputError(f"method={self.method!r} takes fixed steps; give it a step_size, such as 0.1")
        if not self.adaptive and self.first_step is not None:
            raise InputError(f"first_step={self.first_step} has no effect with fixed steps ({self.method!r}); drop it")

    def _check_gradient(self) -> None:
        own = self.method in ADAPTIVE or self.method in FIXED
        if self.gradient is None:
            object.__setattr__(self, "gradient", "checkpoint" if own else "direct")
        if self.gradient not in GRADIENTS:
            raise InputError(f"gradient={self.gradient!r} is unknown; choose one of {', '.join(GRADIENTS)}")
        if self.gradient == "checkpoint" and not own:
            raise InputError(f'gradient="checkpoint" is not for method={self.method!r}: pass "direct" or "adjoint"')
        if self.gradient == "adjoint" and self.method == "tsit5":
            raise InputError('method="tsit5" has no adjoint: pass gradient="checkpoint", or method="dopri5"')

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.method in ADAPTIVE_METHODS

    @property
    def own(self) -> bool:
        """Whether the steps are those of :mod:`anode.runge_kutta`, not of torchdiffeq."""
        return self.gradient != "adjoint" and (self.method in ADAPTIVE or self.method in FIXED)

    @property
    def meters(self) -> bool:
        """Whether :meth:`integrate` takes a ``meter``."""
        return self.own and len((ADAPTIVE | FIXED)[self.method].seen_at) > 0

    def integrate(
        self,
        f: Callable[[Tensor, Any], Any],
        y0: State,
        t0: float,
        t1: float,
        params: Sequence[Tensor | None] = (),
        field: nn.Module | None = None,
        quadratures: int = 0,
        moving: Callable[[Tensor, Any], Any] | None = None,
        passive: int = 0,
        meter: Meter | None = None,
    ) -> Any:
        """Solve dy/dt = f(t, y), y(t0) = y0, for y(t1).

        Args:
            f: the right-hand side; ``t`` is a scalar tensor, ``y`` and its result are shaped like ``y0``.
            y0: initial state, a tensor or a tuple of tensors of any shapes.
            t0: initial time.
            t1: end time, before or after ``t0``.
            params: tensors besides the parameters of ``field`` that f depends on, such as a context; None entries
                are skipped. Checkpoints and the adjoint give gradients to these; what else f closes over gets none from
                the adjoint, and is refused with checkpoints.
            field: the module that f evaluates; f itself when f is a module. Its parameters join ``params``, and it
                is what :func:`count_evals` looks for.
            quadratures: the last so many components of a tuple are integrals along the way, which f does not depend on;
                f is passed some earlier value of theirs.
            moving: f without the quadratures, of the tuple of the other components and to their rates; cheaper than f,
                it is evaluated where some methods can do with it.
            passive: the last so many components of a tuple are integrated along, with no part in the choice of steps.
            meter: makes a number a sample (B,) of every accepted step, from some nodes of it, from 0 to 1, the slopes
                there, which are tuples of components, and the step size; for solvers that :attr:`meters`. Their sum is
                one more component of the result.

        Returns:
            y(t1), shaped like ``y0``.

        Raises:
            InputError: when f depends on a tensor that would get no gradient, with checkpoints; when one of ``params``
                is made of another, whose gradient would be counted twice, with checkpoints and the adjoint.
            SolverError: when the end time cannot be reached.
        """
        if t0 == t1:
            return y0 if meter is None else (*y0, y0[0].new_zeros(len(y0[0])))
        (end,), metered = self._solve(f, y0, (t0, t1), params, field, Along(quadratures, moving, passive, meter))
        return end[0] if isinstance(y0, Tensor) else (*end, *(() if metered is None else (metered,)))

    def trajectory(
        self,
        f: Callable[[Tensor, Any], Any],
        y0: State,
        times: Sequence[float] | Tensor,
        params: Sequence[Tensor | None] = (),
        field: nn.Module | None = None,
    ) -> Any:
        """Solve dy/dt = f(t, y), y(times[0]) = y0, for y at every time.

        Args:
            f: see :meth:`integrate`.
            y0: see :meth:`integrate`.
            times: two or more strictly increasing or strictly decreasing times. A fixed-step method puts steps on
                them; an adaptive one interpolates all but the last by its own dense output.
            params: see :meth:`integrate`.
            field: see :meth:`integrate`.

        Returns:
            The states, shaped like ``y0`` with a leading axis of ``len(times)``.

        Raises:
            InputError: when the times are not strictly monotone, or as :meth:`integrate` does.
            SolverError: when the last time cannot be reached.
        """
        states, _ = self._solve(f, y0, times, params, field, Along())
        if isinstance(y0, Tensor):
            return torch.stack([y0, *(state[0] for state in states)])
        return tuple(torch.stack(component) for component in zip(y0, *states, strict=True))

    @torch.compiler.disable  # the steps depend on the data: compile the field, not the loop around it
    def _solve(
        self,
        f: Callable[[Tensor, Any], Any],
        y0: State,
        times: Sequence[float] | Tensor,
        params: Sequence[Tensor | None],
        field: nn.Module | None,
        along: Along,
    ) -> Solution:
        """The components at every time but the first, and what was metered."""
        if field is None and isinstance(f, nn.Module):
            field = f
        like = y0 if isinstance(y0, Tensor) else y0[0]
        clock = torch.float32 if like.device.type == "mps" else torch.float64
        t = torch.as_tensor(times, dtype=clock, device=like.device)
        _check_times(t)
        given = [tensor for tensor in params if tensor is not None]
        given += field.parameters() if field is not None else ()
        given = list({id(tensor): tensor for tensor in given}.values())  # one listed twice has its gradient once
        if self.gradient != "direct" and torch.is_grad_enabled():
            check_independent(given)

        rhs = RightHandSide(f, self, listening(field), field)
        if self.own:
            found = self._own(rhs, y0, t, given, along)
        else:
            assert along.meter is None
            found = by_torchdiffeq.solve(self, rhs, y0, t, given, along.passive)
        if not self.adaptive:
            rhs.check_finite(found.states[-1], t[-1])
        return found

    def _own(self, rhs: RightHandSide, y0: State, times: Tensor, params: Sequence[Tensor], along: Along) -> Solution:
        """Solve by the loops of this package, for which a state is a tuple and a time a number."""
        bare, checkpoints = isinstance(y0, Tensor), self.gradient == "checkpoint" and torch.is_grad_enabled()

        def slope(t: float, y: Components) -> Components:
            if checkpoints and not torch.is_grad_enabled():  # f may differentiate, as that of a Hamiltonian
                y = tuple(part.detach().requires_grad_() for part in y)
            time = times.new_tensor(t)
            return (rhs(time, y[0]),) if bare else rhs(time, y)

        def slope_moving(t: float, y: Components) -> Components:
            assert along.moving is not None
            return rhs.counted(along.moving, times.new_tensor(t), y)

        tableau = (ADAPTIVE | FIXED)[self.method]
        moving = None if along.moving is None else slope_moving
        stepper = Stepper(tableau, slope, along.quadratures, moving, along.meter)
        start = (y0,) if isinstance(y0, Tensor) else tuple(y0)
        begin = tuple(part.detach().requires_grad_(part.requires_grad) for part in start) if checkpoints else start
        first = slope(float(times[0]), begin)
        check_shapes(start, first)
        if checkpoints:
            check_listed(first, begin, params)
            first = tuple(rate.detach() for rate in first)

        def solve(y: Components, keep: Callable[[Step], None] | None = None) -> Solution:
            problem = Problem(stepper, y, first, rhs, keep)
            if self.adaptive:
                return adaptive(problem, times.tolist(), Control(self.rtol, self.atol, self.first_step, along.passive))
            assert self.step_size is not None
            grid = even_grid(times, self.step_size)
            return fixed(problem, grid.tolist(), torch.isin(grid, times)[1:].tolist())

        if not (checkpoints and any(tensor.requires_grad for tensor in (*start, *params))):
            return solve(start)
        found = solve_checkpointed(solve, stepper, start, params)
        for state in found.states:
            rhs.await_backward(state)
        return found

    def __str__(self) -> str:
        if self.adaptive:
            return f"{self.method} (rtol={self.rtol:g}, atol={self.atol:g}, max_steps={self.max_steps})"
        return f"{self.method} (step_size={self.step_size:g}, max_steps={self.max_steps})"


def _check_times(t: Tensor) -> None:
    gaps = t.diff()
    if t.ndim != 1 or len(t) < 2 or not (bool((gaps > 0).all()) or bool((gaps < 0).all())):
        raise InputError(f"times={t.tolist()} must be two or more strictly increasing or strictly decreasing numbers")
