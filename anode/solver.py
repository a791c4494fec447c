"""The numerics of an ODE solve as one value: method, tolerances, gradient mode; and failures in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from anode.errors import InputError
from anode.evaluations import listening
from anode.fixed_steps import rk4
from anode.right_hand_side import RightHandSide, State
from anode.runge_kutta import AfterStep, dopri5

ADAPTIVE_METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED_METHODS = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")
GRADIENTS = ("direct", "adjoint")


@dataclass(frozen=True)
class Solver:
    """How an ODE is solved: a value to compare, print and store.

    The error of an adaptive step is measured for each component of a tuple state by its own root mean square, and
    the largest controls the step, so that easy components never dilute the error of the others. The last step lands
    on the end time instead of interpolating past it.

    Attributes:
        method: adaptive (``dopri5``, ``dopri8``, ``bosh3``, ``fehlberg2``, ``adaptive_heun``) or of fixed step
            (``euler``, ``midpoint``, ``heun2``, ``heun3``, ``rk4``, ``explicit_adams``, ``implicit_adams``). They are
            torchdiffeq's, except for ``dopri5`` and ``rk4`` with direct gradients, which take the same steps with less
            overhead.
        rtol: relative tolerance of an adaptive method, per step.
        atol: absolute tolerance of an adaptive method, per step, in the units of the state.
        step_size: largest step of a fixed-step method; the steps divide each interval evenly.
        max_steps: a solve that needs more steps than this, rejected ones included, is a :class:`SolverError`.
        gradient: ``"direct"`` backpropagates through the steps: exact gradients of the discrete solution, memory
            that grows with the steps. ``"adjoint"`` solves the continuous adjoint equation backwards: constant
            memory, gradients up to the tolerance, parameters left out of the error control (seminorm).

    Raises:
        InputError: for an unknown method or gradient, or a number out of range.

    References:
        Chen, Rubanova, Bettencourt, Duvenaud 2018, arXiv 1806.07366 (adjoint); Kidger, Chen, Lyons 2021,
        arXiv 2009.09457 (seminorm).
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    step_size: float | None = None
    max_steps: int = 1000
    gradient: str = "direct"

    def __post_init__(self) -> None:
        methods = ADAPTIVE_METHODS + FIXED_METHODS
        if self.method not in methods:
            raise InputError(f"method={self.method!r} is unknown; choose one of {', '.join(methods)}")
        if self.gradient not in GRADIENTS:
            raise InputError(f"gradient={self.gradient!r} is unknown; choose one of {', '.join(GRADIENTS)}")
        for name in ("rtol", "atol", "step_size"):
            value = getattr(self, name)
            if name == "step_size" and value is None:
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

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.method in ADAPTIVE_METHODS

    @property
    def shows_steps(self) -> bool:
        """Whether :meth:`integrate` can call ``after_step``."""
        return self.gradient == "direct" and self.method in ("dopri5", "rk4")

    def integrate(
        self,
        f: Callable[[Tensor, Any], Any],
        y0: State,
        t0: float,
        t1: float,
        params: Sequence[Tensor | None] = (),
        field: nn.Module | None = None,
        passive: int = 0,
        after_step: AfterStep | None = None,
    ) -> Any:
        """Solve dy/dt = f(t, y), y(t0) = y0, for y(t1).

        Args:
            f: the right-hand side; ``t`` is a scalar tensor, ``y`` and its result are shaped like ``y0``.
            y0: initial state, a tensor or a tuple of tensors of any shapes.
            t0: initial time.
            t1: end time, before or after ``t0``.
            params: tensors besides the parameters of ``field`` that f depends on, such as a context; None entries
                are skipped. The adjoint gives gradients to these and to nothing else that f closes over.
            field: the module that f evaluates; f itself when f is a module. Its parameters join ``params``, and it
                is what :func:`count_evals` looks for.
            passive: the last so many components of a tuple are integrated along, with no part in the choice of steps.
            after_step: called after every accepted step with some nodes of it, from 0 to 1, the slopes there, which are
                tuples of components, and the step size; for solvers that :attr:`shows_steps`.

        Returns:
            y(t1), shaped like ``y0``.

        Raises:
            SolverError: when the end time cannot be reached.
        """
        if t0 == t1:
            return y0
        path = self.trajectory(f, y0, (t0, t1), params, field, passive, after_step)
        return path[-1] if isinstance(path, Tensor) else tuple(component[-1] for component in path)

    @torch.compiler.disable  # the steps depend on the data: compile the field, not the loop around it
    def trajectory(
        self,
        f: Callable[[Tensor, Any], Any],
        y0: State,
        times: Sequence[float] | Tensor,
        params: Sequence[Tensor | None] = (),
        field: nn.Module | None = None,
        passive: int = 0,
        after_step: AfterStep | None = None,
    ) -> Any:
        """Solve dy/dt = f(t, y), y(times[0]) = y0, for y at every time.

        Args:
            f: see :meth:`integrate`.
            y0: see :meth:`integrate`.
            times: two or more strictly increasing or strictly decreasing times. A fixed-step method puts steps on
                them; an adaptive one interpolates all but the last by its own dense output.
            params: see :meth:`integrate`.
            field: see :meth:`integrate`.
            passive: see :meth:`integrate`.
            after_step: see :meth:`integrate`.

        Returns:
            The states, shaped like ``y0`` with a leading axis of ``len(times)``.

        Raises:
            InputError: when the times are not strictly monotone.
            SolverError: when the last time cannot be reached.
        """
        if field is None and isinstance(f, nn.Module):
            field = f
        like = y0 if isinstance(y0, Tensor) else y0[0]
        clock = torch.float32 if like.device.type == "mps" else torch.float64
        t = torch.as_tensor(times, dtype=clock, device=like.device)
        _check_times(t)

        rhs = RightHandSide(f, self, listening(field))
        settings = {"rtol": self.rtol, "atol": self.atol, "method": self.method}
        assert after_step is None or self.shows_steps
        if self.shows_steps:
            path = self._own(rhs, y0, t, passive, after_step)
        elif self.gradient == "adjoint":
            given = [tensor for tensor in params if tensor is not None]
            path = odeint_adjoint(
                rhs,
                y0,
                t,
                **settings,
                options=self._options(t[-1:], passive),
                adjoint_options={**self._options(t[:-1]), "norm": "seminorm"},
                adjoint_params=(*given, *(field.parameters() if field is not None else ())),
            )
            rhs.await_backward(path)
        else:
            path = odeint(rhs, y0, t, **settings, options=self._options(t[-1:], passive))
        if not self.adaptive:
            rhs.check_finite(path, t[-1])
        return path

    def _own(self, rhs: RightHandSide, y0: State, times: Tensor, passive: int, after_step: AfterStep | None) -> State:
        """Solve by the loops of this package, for which a state is a tuple and a time a number."""
        bare = isinstance(y0, Tensor)

        def slope(t: float, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            time = times.new_tensor(t)
            return (rhs(time, y[0]),) if bare else rhs(time, y)

        start = (y0,) if isinstance(y0, Tensor) else tuple(y0)
        if self.adaptive:
            tolerances = (self.rtol, self.atol)
            states = dopri5(slope, start, times.tolist(), *tolerances, rhs.callback_step, after_step, passive)
        else:
            grid = self._grid(times)
            steps = rk4(slope, start, grid.tolist(), rhs.callback_step, after_step)
            states = [steps[i] for i in torch.isin(grid, times).nonzero().flatten().tolist()]
        path = tuple(torch.stack(component) for component in zip(*states, strict=True))
        return path[0] if bare else path

    def _options(self, land_on: Tensor, passive: int = 0) -> dict[str, Any]:
        if self.adaptive:
            return {"step_t": land_on, "dtype": land_on.dtype, "norm": partial(_error_norm, passive=passive)}
        options: dict[str, Any] = {"grid_constructor": lambda f, y0, times: self._grid(times)}
        if self.method.endswith("adams"):
            options["max_order"] = 5  # torchdiffeq's default of 12 amplifies rounding until it dominates
        return options

    def _grid(self, times: Tensor) -> Tensor:
        """Even steps of at most ``step_size`` within each interval, so that every output time is a grid point."""
        assert self.step_size is not None
        ends = times.tolist()
        pieces = []
        for start, end in pairwise(ends):
            steps = max(1, math.ceil(abs(end - start) / self.step_size - 1e-6))
            pieces.append(torch.linspace(start, end, steps + 1, dtype=times.dtype, device=times.device)[:-1])
        return torch.cat([*pieces, times[-1:]])

    def __str__(self) -> str:
        if self.adaptive:
            return f"{self.method} (rtol={self.rtol:g}, atol={self.atol:g}, max_steps={self.max_steps})"
        return f"{self.method} (step_size={self.step_size:g}, max_steps={self.max_steps})"


@torch.no_grad()
def _error_norm(state: State, passive: int = 0) -> Tensor:
    """The largest root mean square of the components; outside the graph, so that steps are constants to gradients."""
    components = (state,) if isinstance(state, Tensor) else state[: len(state) - passive]
    norms = [component.square().mean().sqrt() for component in components if component.numel()]
    return torch.stack(norms).max() if norms else components[0].new_zeros(())


def _check_times(t: Tensor) -> None:
    gaps = t.diff()
    if t.ndim != 1 or len(t) < 2 or not (bool((gaps > 0).all()) or bool((gaps < 0).all())):
        raise InputError(f"times={t.tolist()} must be two or more strictly increasing or strictly decreasing numbers")
