"""The numerics of an ODE solve as one value: method, tolerances, gradient mode."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from anode.errors import InputError, SolverError, config
from anode.evaluations import Function, RightHandSide, is_finite
from anode.gradients import (
    as_number,
    check_all_leaves_declared,
    check_no_derived_params,
    explain_vmap,
    is_differentiable,
    is_transformed,
    make_times_states,
    never_compiled,
    solve_with_checkpoints,
    solve_with_torchdiffeq,
)
from anode.runge_kutta import ComponentRoles, RowTimes, RungeKutta, Solution, solve_adaptive, solve_fixed
from anode.tableaus import TABLEAUS, Components, State

AdaptiveMethod = Literal["dopri5", "tsit5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]
FixedMethod = Literal["euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams"]
ADAPTIVE_METHODS: tuple[str, ...] = get_args(AdaptiveMethod)

PRECISIONS = (torch.float32, torch.float64)  # of states
STEP_SIZE = 0.25  # of a method with fixed steps, if none is given

M = TypeVar("M", bound=nn.Module)


@config
class Solver:
    """How an ODE is solved: a value to compare, print and store.

    The error of an adaptive step is measured for each component of a tuple state by its own root mean square, and
    the largest controls the step, so that easy components never dilute the error of the others. The mean is over the
    batch and the dimensions: a row among easier ones can be wrong by more than the tolerance, and differ by as much
    from the same row solved alone. The last step lands on the end time instead of interpolating past it.

    Attributes:
        method: adaptive (``dopri5``, ``tsit5``, ``dopri8``, ``bosh3``, ``fehlberg2``, ``adaptive_heun``) or with fixed
            steps (``euler``, ``midpoint``, ``heun2``, ``heun3``, ``rk4``, ``explicit_adams``, ``implicit_adams``).
            torchdiffeq solves ``dopri8``, ``bosh3``, ``fehlberg2``, ``adaptive_heun``, ``..._adams``, and every method
            with adjoint gradients; the others take the same steps with less overhead.
        rtol: relative tolerance of an adaptive method, per step.
        atol: absolute tolerance of an adaptive method, per step, in the units of the state.
        step_size: largest step of a fixed-step method, 0.25 if omitted; the steps divide each interval evenly.
        max_steps: a solve that needs more steps than this, rejected ones included, is a :class:`SolverError`.
        gradient: ``"direct"`` backpropagates through the steps: exact gradients of the discrete solution, memory
            that grows with the steps; the fastest. ``"checkpoint"`` gives the same gradients in the memory of one step,
            taking each step again in the backward pass. ``"adjoint"`` solves the continuous adjoint equation backwards:
            gradients up to the tolerance, parameters left out of the error control (seminorm); a backward pass with
            ``create_graph=True`` is an :class:`InputError`, since it does not have second derivatives. If omitted, it
            is ``"checkpoint"``, or ``"direct"`` for the methods of torchdiffeq, which keep no checkpoints. Transforms
            of ``torch.func`` take ``"direct"`` in place of checkpoints, and ``vmap`` is refused.
        first_step: length of the first step of an adaptive method; chosen by an evaluation when omitted.

    References:
        Chen et al. 2018, arXiv 1806.07366 (adjoint); Kidger et al. 2021, arXiv 2009.09457 (seminorm); Zhuang et al.
        2020, arXiv 2006.02493 (checkpoints).
    """

    method: Literal[AdaptiveMethod, FixedMethod] = "dopri5"
    rtol: PositiveFloat = 1e-5
    atol: PositiveFloat = 1e-5
    step_size: PositiveFloat | None = None
    max_steps: PositiveInt = 1000
    gradient: Literal["checkpoint", "direct", "adjoint"] | None = None
    first_step: PositiveFloat | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """Take the name of a method for a solver in other configurations."""
        return {"method": value} if isinstance(value, str) else value

    def __post_init__(self) -> None:
        replayable = self.method in TABLEAUS
        if self.gradient is None:
            object.__setattr__(self, "gradient", "checkpoint" if replayable else "direct")
        if self.gradient == "checkpoint" and not replayable:
            raise InputError(f'gradient="checkpoint" is not for method={self.method!r}: pass "direct" or "adjoint"')
        if self.gradient == "adjoint" and self.method == "tsit5":
            raise InputError('gradient="adjoint" is not for method=\'tsit5\': pass "checkpoint", or method="dopri5"')
        if self.adaptive and self.step_size is not None:
            raise InputError(
                f"step_size={self.step_size} has no effect on the adaptive method {self.method!r}: remove it"
            )
        if not self.adaptive and self.step_size is None:
            object.__setattr__(self, "step_size", STEP_SIZE)
        if not self.adaptive and self.first_step is not None:
            raise InputError(f"first_step={self.first_step} has no effect on fixed steps ({self.method!r}): remove it")

    @property
    def adaptive(self) -> bool:
        """True if the method chooses its own steps."""
        return self.method in ADAPTIVE_METHODS

    @property
    def native(self) -> bool:
        """True if :mod:`anode.runge_kutta` takes the steps, not torchdiffeq."""
        return self.gradient != "adjoint" and self.method in TABLEAUS

    @property
    def supports_on_step(self) -> bool:
        """True if :meth:`integrate` accepts ``ComponentRoles.on_step``."""
        return self.native and len(TABLEAUS[self.method].slope_nodes) > 0

    def integrate(
        self,
        f: Function,
        y0: State,
        t0: float | Tensor,
        t1: float | Tensor,
        params: Sequence[Tensor | None] = (),
        field: nn.Module | None = None,
        roles: ComponentRoles = ComponentRoles(),  # noqa: B008 - an immutable value
    ) -> Any:
        """Solve dy/dt = f(t, y), y(t0) = y0, for y(t1).

        Args:
            f: the right-hand side; ``t`` is a scalar tensor, ``y`` and its result are shaped like ``y0``. It must not
                change ``y``. If it draws random numbers, as dropout does, all evaluations of a solve have one draw.
            y0: initial state, a tensor or a tuple of tensors of any shapes, in single or double precision. It keeps its
                precision under ``torch.autocast``, where f alone runs in half precision and half states become single.
            t0: initial time.
            t1: end time, before or after ``t0``. Times that require gradients get them: dy(t1)/dt1 = f(t1, y(t1)).
            params: tensors besides the parameters of ``field`` that f depends on, such as a context; none may be
                computed from another, and None is skipped. A tensor that is not listed is an error with checkpoints,
                and gets no gradient from the adjoint.
            field: the module that f evaluates; f itself if f is a module. Its parameters join ``params``, and
                :func:`count_evals` counts its evaluations.
            roles: roles of the components of a tuple.

        Returns:
            y(t1), shaped like ``y0``; with ``roles.on_step`` one component (B,) more.

        Raises:
            SolverError: if the end time cannot be reached.
            InputError: if f does not return slopes of the state, or changes the state in place.
        """
        y0 = _check_state(y0)
        if is_differentiable(t0) or is_differentiable(t1):
            g, start, roles = make_times_states(f, y0, t0, t1, roles)
            field = f if field is None and isinstance(f, nn.Module) else field
            _, _, *end = self.integrate(g, start, as_number(t0), as_number(t1), params, field, roles)
            return end[0] if isinstance(y0, Tensor) else tuple(end)
        t0, t1 = as_number(t0), as_number(t1)
        if roles.on_step is not None and not self.supports_on_step:
            raise InputError(
                f"on_step is not for {self.method!r} with gradient={self.gradient!r}: see supports_on_step"
            )
        if t0 == t1:
            return y0 if roles.on_step is None else (*y0, y0[0].new_zeros(len(y0[0])))
        (end,), step_total = self._solve(f, y0, [t0, t1], params, field, roles)
        return end[0] if isinstance(y0, Tensor) else (*end, *(() if step_total is None else (step_total,)))

    def trajectory(
        self,
        f: Function,
        y0: State,
        times: Sequence[float] | Tensor,
        params: Sequence[Tensor | None] = (),
        field: nn.Module | None = None,
    ) -> Any:
        """Solve dy/dt = f(t, y), y(times[0]) = y0, for y at every time.

        Args:
            f: see :meth:`integrate`.
            y0: the state at the first time.
            times: two or more strictly increasing or strictly decreasing times. A fixed-step method puts steps on
                them; an adaptive one interpolates all but the last by its own dense output. Times that require
                gradients get them; each interval is then one solve.
            params: see :meth:`integrate`.
            field: see :meth:`integrate`.

        Returns:
            The states, shaped like ``y0`` with a leading axis of ``len(times)``.
        """
        y0 = _check_state(y0)
        numbers = _as_monotone(times)
        if any(map(is_differentiable, times)):
            path = [y0]
            for start, end in pairwise(times):
                path.append(self.integrate(f, path[-1], start, end, params, field))
            states = [(state,) if isinstance(state, Tensor) else state for state in path[1:]]
        else:
            states, _ = self._solve(f, y0, numbers, params, field, ComponentRoles())
        if isinstance(y0, Tensor):
            return torch.stack([y0, *(state[0] for state in states)])
        return tuple(torch.stack(component) for component in zip(y0, *states, strict=True))

    def states_at(
        self,
        f: Function,
        y0: Tensor,
        t0: float,
        times: Tensor,
        rows: Tensor,
        params: Sequence[Tensor | None] = (),
        field: nn.Module | None = None,
    ) -> Tensor:
        """Solve dy/dt = f(t, y), y(t0) = y0, for rows of y at different times.

        ``dopri5`` and ``tsit5`` evaluate their dense output for the wanted rows alone, so that N outputs cost the same
        in a batch as one by one. The other methods compute all rows at all times.

        Args:
            f: see :meth:`integrate`.
            y0: the state (B, *S) at ``t0``.
            t0: initial time.
            times: times (N,) in any order, none before ``t0``.
            rows: the row, from 0 to B - 1, to return at each time, (N,).
            params: see :meth:`integrate`.
            field: see :meth:`integrate`.

        Returns:
            The states, (N, *S).
        """
        y0, times = _check_state(y0), times.to(torch.float32 if times.device.type == "mps" else torch.float64)
        if times.requires_grad or (len(times) and not bool((times >= t0).all())):
            raise InputError(f"times must be numbers from t0={t0:g} on: detach them, and leave out earlier ones")
        end = float(times.max()) if len(times) else t0
        if end == t0:
            return y0[rows]
        if not (self.native and self.adaptive):
            grid, place = torch.cat([times.new_tensor([t0]), times]).unique(return_inverse=True)
            return self.trajectory(f, y0, grid, params, field)[place[1:], rows]
        order = times.argsort()
        solution = self._solve(f, y0, [t0, end], params, field, ComponentRoles(), RowTimes(times[order], rows[order]))
        return torch.cat([state[0] for state in solution.states[:-1]])[order.argsort()]

    @never_compiled  # the steps depend on the data: compile the field, not the loop around it
    def _solve(
        self,
        f: Function,
        y0: State,
        times: Sequence[float],
        params: Sequence[Tensor | None],
        field: nn.Module | None,
        roles: ComponentRoles,
        rows: RowTimes | None = None,
    ) -> Solution:
        """Return the states at every time but the first; see :func:`anode.runge_kutta.solve_adaptive` for ``rows``."""
        times = _as_monotone(times)
        if not callable(f):
            raise InputError(f"f={f!r} is not a function: pass f(t, y), which returns dy/dt")
        if field is None and isinstance(f, nn.Module):
            field = f
        params = (params,) if isinstance(params, Tensor) else params
        declared = (*params, *(() if field is None else field.parameters()))
        params = list({id(tensor): tensor for tensor in declared if tensor is not None}.values())  # each once
        if self.gradient != "direct" and torch.is_grad_enabled():
            check_no_derived_params(params)

        parts = (y0,) if isinstance(y0, Tensor) else tuple(y0)
        checkpoints = self.gradient == "checkpoint" and torch.is_grad_enabled()
        if is_transformed():
            if not self.native and (self.adaptive or self.gradient == "adjoint"):
                raise InputError(
                    f"torch.func cannot transform method={self.method!r} with gradient={self.gradient!r}: pass "
                    'gradient="direct", with method="dopri5" or "tsit5" if the steps are adaptive'
                )
            checkpoints = False  # torch.func differentiates the steps themselves
        rhs = RightHandSide(f, y0, self, field, checkpoints)
        with explain_vmap():
            if self.native:
                solution = self._solve_native(rhs, parts, times, params, roles, rows)
            else:
                solution = solve_with_torchdiffeq(rhs, y0, times, params, roles.exclude_from_error)
            if not self.adaptive and not is_finite(solution.states[-1]):  # fixed steps are never rejected
                raise SolverError("non-finite state", times[-1], rhs.evaluations, self)
        return solution

    def _solve_native(
        self,
        rhs: RightHandSide,
        y0: Components,
        times: Sequence[float],
        params: Sequence[Tensor],
        roles: ComponentRoles,
        rows: RowTimes | None,
    ) -> Solution:
        start = tuple(part.detach().requires_grad_(part.requires_grad) for part in y0) if rhs.checkpoints else y0
        k1 = rhs(times[0], start)
        if rhs.checkpoints:
            check_all_leaves_declared(k1, start, params)
            k1 = tuple(slope.detach() for slope in k1)

        method = RungeKutta(TABLEAUS[self.method], rhs, roles)
        settings: dict[str, Any] = {"step_size": self.step_size}
        if self.adaptive:
            settings = {"rtol": self.rtol, "atol": self.atol, "first_step": self.first_step, "rows": rows}
        solve = partial(solve_adaptive if self.adaptive else solve_fixed, method, k1=k1, times=times, **settings)
        if rhs.checkpoints and any(tensor.requires_grad for tensor in (*y0, *params)):
            return solve_with_checkpoints(solve, method, y0, params)
        return solve(y0=y0)

    def __str__(self) -> str:
        if self.adaptive:
            return f"{self.method} (rtol={self.rtol:g}, atol={self.atol:g}, max_steps={self.max_steps})"
        return f"{self.method} (step_size={self.step_size:g}, max_steps={self.max_steps})"


def with_solver(model: M, solver: Solver) -> M:
    """Copy a model with another solver in each of its ODEs.

    Parameters and buffers are shared, so cast or move the model first.

    Example:
        >>> from anode import MLPField, ODEBlock, Solver
        >>> net = nn.Sequential(nn.Linear(2, 3), ODEBlock(MLPField(3)))
        >>> with_solver(net, Solver(rtol=1e-8, atol=1e-8))[1].solver.rtol
        1e-08
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    copied: Any = copy.deepcopy(model, memo=shared)
    solver = check_solver(solver)
    for part in copied.modules():
        if isinstance(getattr(part, "solver", None), Solver):
            part.solver = solver
    return copied


def check_solver(solver: Any) -> Solver:
    """Return a solver, by its method's name too, or raise an :class:`InputError` for anything else."""
    if isinstance(solver, str):
        return Solver(cast(Any, solver))
    if not isinstance(solver, Solver):
        raise InputError(f"solver={solver!r} is not a Solver: pass a Solver, such as Solver('dopri5')")
    return solver


def _as_monotone(times: Any) -> list[float]:
    single = not hasattr(times, "__len__") or (isinstance(times, Tensor) and times.ndim == 0)
    numbers = [] if single else [as_number(t) for t in times]
    gaps = [(after - before) * (numbers[-1] - numbers[0]) for before, after in pairwise(numbers)]
    if not gaps or not all(gap > 0 for gap in gaps):
        raise InputError(
            f"times={numbers or times} must be two or more strictly increasing or strictly decreasing numbers"
        )
    return numbers


def _check_state(y0: Any) -> Any:
    """Return a state in single or double precision; half precision is raised to single under ``torch.autocast``."""
    if isinstance(y0, tuple | list) and y0 and all(isinstance(part, Tensor) for part in y0):
        return tuple([_check_state(part) for part in y0])
    if not isinstance(y0, Tensor):
        raise InputError(f"y0 is of type {type(y0).__name__}: pass a tensor, or a tuple of tensors")
    if y0.dtype in PRECISIONS:
        return y0
    if y0.dtype not in (torch.float16, torch.bfloat16):
        raise InputError(f"the state has dtype {y0.dtype}: pass floating-point numbers, such as x.float()")
    if not torch.is_autocast_enabled(y0.device.type):
        raise InputError(
            f"the state has dtype {y0.dtype}, too coarse for the sums of a solve: pass float32, and evaluate the "
            "field alone in half precision by torch.autocast"
        )
    return y0.float()


def solvers_in(module: nn.Module) -> list[Solver]:
    """List the solvers of the ODEs in a module, in the order of its submodules."""
    found = (getattr(part, "solver", None) for part in module.modules())
    return [solver for solver in found if isinstance(solver, Solver)]
