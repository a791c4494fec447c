"""The right-hand side of a solve, and the number of its evaluations (NFE)."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anode.errors import InputError, SolverError
from anode.tableaus import State

if TYPE_CHECKING:
    from anode.solver import Solver

Function = Callable[[Tensor, Any], Any]

IN_PLACE = "the field changes its state in place: pass inplace=False, or write x = x + 1 instead of x += 1"


@dataclass
class Evaluations:
    """Calls of a right-hand side by the solver.

    Attributes:
        forward: evaluations while solving.
        backward: evaluations in a backward pass, by the adjoint or by replayed steps.
        solves: number of solves.
        steps: number of steps tried while solving, rejected steps included.
        points: forward evaluations times the samples of their batches: the work of all samples.
    """

    forward: int = 0
    backward: int = 0
    solves: int = 0
    steps: int = 0
    points: int = 0

    @property
    def per_solve(self) -> float:
        """Forward evaluations per solve; 0 without a solve."""
        return self.forward / max(1, self.solves)


# The counters of the blocks that are open, each with the module whose solves it counts, or None for every solve.
ACTIVE_COUNTERS: ContextVar[tuple[tuple[nn.Module | None, Evaluations], ...]] = ContextVar("counters", default=())


@contextmanager
def count_evals(module: nn.Module | None = None) -> Generator[Evaluations]:
    """Count the number of function evaluations (NFE) of every solve begun inside the block.

    One evaluation is one call of the right-hand side by the solver, whatever it computes besides the velocity.
    Evaluations of the backward pass are counted whenever it runs, also after the block. Nothing is stored on the
    module, and blocks nest.

    Args:
        module: count only solves of fields that belong to this module; every solve when omitted.

    Yields:
        The running :class:`Evaluations`.

    Example:
        >>> import torch
        >>> from anode import MLPField, ODEBlock, Solver, count_evals
        >>> block = ODEBlock(MLPField(2), Solver("rk4", step_size=0.25))
        >>> with count_evals(block) as nfe:
        ...     _ = block(torch.randn(8, 2))
        >>> nfe.forward  # four steps of four stages
        16
    """
    evaluations = Evaluations()
    token = ACTIVE_COUNTERS.set((*ACTIVE_COUNTERS.get(), (module, evaluations)))
    try:
        yield evaluations
    finally:
        ACTIVE_COUNTERS.reset(token)


def open_counters(field: nn.Module | None) -> list[Evaluations]:
    """Return the counters that count evaluations of a field; of one that is not known, those of every solve."""
    return [
        evaluations
        for module, evaluations in ACTIVE_COUNTERS.get()
        if module is None or any(field is part for part in module.modules())
    ]


class RightHandSide:
    """The function f of dy/dt = f(t, y), counted, whose failures become a :class:`SolverError`.

    An ODE needs one function: if the first evaluation draws random numbers, as dropout does, all others see the same
    draw, those of the backward pass too. Buffers that f updates, such as running statistics, are updated by the
    evaluations of the forward pass only.

    Before every step, accepted or rejected, solvers call ``callback_step`` (torchdiffeq ``callback_step_adjoint`` in a
    backward pass), which raises before torchdiffeq's bare assertions do.

    Args:
        f: the function.
        y0: the initial state, a tensor or a tuple of components.
        solver: the numerics, for ``max_steps`` and for messages.
        field: the module that f evaluates, if it is known.
        checkpoints: True if steps run without a graph; the state still requires gradients, since f may differentiate.
    """

    def __init__(self, f: Function, y0: State, solver: Solver, field: nn.Module | None, checkpoints: bool) -> None:
        self.f = f
        self.solver = solver
        self.field = field
        self.checkpoints = checkpoints
        self.is_tensor = isinstance(y0, Tensor)
        like = y0 if isinstance(y0, Tensor) else y0[0]
        self.time = like.new_empty((), dtype=torch.float32 if like.device.type == "mps" else torch.float64)
        self.parameters = self._parameters()
        parts = (y0,) if isinstance(y0, Tensor) else y0
        self.batch = max((len(part) for part in parts if part.ndim), default=1)  # a component may be the time
        self.counters = open_counters(field)
        for counter in self.counters:
            counter.solves += 1
        self.phase = "forward"
        self.steps = 0
        self.evaluations = 0
        self.derivative: Any = None  # the last one, to tell a blow-up from stiffness
        self.random_states: list[Tensor] = []  # before the first evaluation, if it draws random numbers
        self.replays = solver.gradient != "direct" and torch.is_grad_enabled()  # evaluates f in the backward pass, too
        self.buffers: list[Tensor] = []  # of the field, if it replays and the first evaluation updates them

    def __call__(self, t: Tensor | float, y: Any, f_state: Function | None = None) -> Any:
        """Evaluate f, or ``f_state`` in its place.

        torchdiffeq passes time as a tensor and the state as f takes it; :mod:`anode.runge_kutta` a number and a tuple.
        """
        self.evaluations += 1
        for counter in self.counters:
            if self.phase == "forward":
                counter.forward += 1
                counter.points += self.batch
            else:
                counter.backward += 1
        if self.evaluations == 1:
            return self._evaluate_first(t, y)
        if self.random_states or self.buffers:
            with self._as_at_first():
                return self._evaluate(t, y, f_state)
        return self._evaluate(t, y, f_state)

    def _evaluate(self, t: Tensor | float, y: Any, f_state: Function | None = None) -> Any:
        if isinstance(t, Tensor):
            self.derivative = self.f(t, y)
        else:
            if self.checkpoints and not torch.is_grad_enabled():
                y = tuple([part.detach().requires_grad_() for part in y])
            time = self.time.new_full((), t)
            if f_state is not None:
                return f_state(time, y)
            self.derivative = (self.f(time, y[0]),) if self.is_tensor else self.f(time, y)
        return self.derivative

    def _evaluate_first(self, t: Tensor | float, y: Any) -> Any:
        """Evaluate f, check what it returns, and find out what else it changes."""
        y = _with_versions(y)
        versions = _versions(y)
        random_states = _get_random_states(self.time.device)
        buffers = list(self.field.buffers()) if self.field is not None and self.replays else []
        buffer_versions = _versions(buffers)
        try:
            slopes = self._evaluate(t, y)
        except RuntimeError as error:
            if "in-place" in str(error) or "inplace" in str(error):
                raise InputError(IN_PLACE) from error
            self._check_precision(y, error)
            raise
        check_slopes(slopes, y)
        if _versions(y) != versions:
            raise InputError(IN_PLACE)
        if not all(map(_are_equal, random_states, _get_random_states(self.time.device))):
            self.random_states = random_states
        if _versions(buffers) != buffer_versions:
            self.buffers = buffers
        return slopes

    @contextmanager
    def _as_at_first(self) -> Generator[None]:
        """Evaluate f with the random numbers of the first evaluation, and in a backward pass without traces."""
        device = self.time.device
        random_states = _get_random_states(device)
        buffers = [(buffer, buffer.clone()) for buffer in self.buffers if self.phase == "backward"]
        if self.random_states:
            _set_random_states(device, self.random_states)
        try:
            yield
        finally:
            _set_random_states(device, random_states)
            for buffer, before in buffers:
                buffer.data.copy_(before)  # .data, since graphs may hold the buffer

    def _check_precision(self, y: Any, error: RuntimeError) -> None:
        """Explain the error of a state whose precision is not that of the field."""
        part = y if isinstance(y, Tensor) else y[0]
        weights = () if self.field is None else self.field.parameters()
        dtype = next((weight.dtype for weight in weights if weight.is_floating_point()), part.dtype)
        if dtype != part.dtype and not torch.is_autocast_enabled(part.device.type):
            raise InputError(
                f"the state has dtype {part.dtype}, the field {dtype}: cast one of them, for example by x.to({dtype})"
            ) from error

    def callback_step(self, t: Any, y: Any, dt: Any) -> None:
        """Count a step from t by dt, and raise if it cannot be taken."""
        self.steps += 1
        if self.phase == "forward":
            for counter in self.counters:
                counter.steps += 1
        if self.steps > self.solver.max_steps:
            raise SolverError("too many steps", float(t), self.evaluations, self.solver)
        # Half a step, so that rounding never lets torchdiffeq's own assertion (t + dt > t) fail first.
        if self.solver.adaptive and t + dt / 2 == t:
            cause = "step underflow" if is_finite((y, self.derivative)) else "non-finite state"
            raise SolverError(cause, float(t), self.evaluations, self.solver)

    callback_step_adjoint = callback_step

    def mark_backward(self, solution: State) -> None:
        """Count evaluations as backward from the moment a gradient of the solution arrives."""
        for component in (solution,) if isinstance(solution, Tensor) else solution:
            if component.requires_grad:
                component.register_hook(self._begin_backward)

    def _begin_backward(self, _: Tensor) -> None:
        if self.solver.gradient == "adjoint" and torch.is_grad_enabled():
            raise InputError(
                'gradient="adjoint" does not have second derivatives, which create_graph=True asks for: pass '
                'gradient="checkpoint" or "direct"'
            )
        if self._parameters() != self.parameters:  # the steps would be replayed with other parameters
            raise InputError(
                "the parameters of the field were exchanged after the solve, perhaps by torch.func.functional_call: "
                'pass gradient="direct"'
            )
        self.phase = "backward"
        self.steps = 0

    def _parameters(self) -> list[int]:
        return [] if self.field is None else [id(parameter) for parameter in self.field.parameters()]


def check_slopes(slopes: Any, y: Any) -> None:
    """Raise an :class:`InputError` unless f returns tensors of the shapes of the state, and of no wider type."""
    got, state = (parts if isinstance(parts, tuple | list) else (parts,) for parts in (slopes, y))
    for k, part in zip_longest(got, state):
        both = isinstance(k, Tensor) and isinstance(part, Tensor) and k.shape == part.shape
        if not both or torch.promote_types(k.dtype, part.dtype) != part.dtype:
            raise InputError(f"f returns {_describe(k)} for a state {_describe(part)}: return dx/dt of the same kind")


def _describe(part: Any) -> str:
    return f"{tuple(part.shape)} {part.dtype}" if isinstance(part, Tensor) else type(part).__name__


def _with_versions(y: Any) -> Any:
    """Copy a state that was made in inference mode, where tensors do not count their changes."""
    if isinstance(y, Tensor):
        if not y.is_inference():
            return y
        with torch.inference_mode(False):
            return y.clone()
    return tuple([_with_versions(part) for part in y])


def _versions(tensors: Any) -> list[int]:
    """Return how often each tensor was changed in place."""
    parts = (tensors,) if isinstance(tensors, Tensor) else tensors
    return [0 if part.is_inference() else part._version for part in parts]


def _get_random_states(device: torch.device) -> list[Tensor]:
    """Return the states of torch's random number generators on the CPU and on the device."""
    states = [torch.get_rng_state()]
    if device.type in ("cuda", "xpu"):
        states.append(torch.get_device_module(device).get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def _are_equal(state: Tensor, other: Tensor) -> bool:
    return torch.equal(state.view(torch.int32), other.view(torch.int32))  # five times as fast as bytes


def _set_random_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type in ("cuda", "xpu"):
        torch.get_device_module(device).set_rng_state(states[1], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states[1])


def is_finite(state: Any) -> bool:
    """Return True if all numbers of a state are finite."""
    if isinstance(state, Tensor):
        return bool(torch.isfinite(state).all())
    return all(is_finite(component) for component in state)
