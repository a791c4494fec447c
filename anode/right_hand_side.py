"""The right-hand side as solvers call it: it counts, and turns their dead ends into errors in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anode.errors import InputError, SolverError
from anode.evaluations import Evaluations

State = Tensor | tuple[Tensor, ...]


class RightHandSide:
    """Evaluates f, counts, and turns the dead ends of a solve into :class:`SolverError`.

    Solvers call ``callback_step`` (torchdiffeq ``callback_step_adjoint`` in a backward pass) before every step,
    accepted or rejected, which is where torchdiffeq's own bare assertions would fail next.

    Args:
        f: the right-hand side.
        solver: what solves, for messages; gives ``max_steps`` and ``adaptive``.
        listeners: those who count.
        field: the module that f evaluates, if it is known.
    """

    def __init__(
        self, f: Callable[[Tensor, Any], Any], solver: Any, listeners: list[Evaluations], field: nn.Module | None
    ) -> None:
        self.f = f
        self.solver = solver
        self.field = field
        self.parameters = self._parameters()
        self.listeners = listeners
        for listener in listeners:
            listener.solves += 1
        self.phase = "forward"
        self.steps = 0
        self.evaluations = 0
        if solver.adaptive:
            self.callback_reject_step = self.reject_step  # torchdiffeq's solvers of fixed steps warn about it
        self.derivative: Any = None  # of the last evaluation: tells a blow-up from plain stiffness

    def __call__(self, t: Tensor, y: Any) -> Any:
        """Evaluate f."""
        self.derivative = self.counted(self.f, t, y)
        return self.derivative

    def counted(self, f: Callable[[Tensor, Any], Any], t: Tensor, y: Any) -> Any:
        """Evaluate a part of the right-hand side; that is an evaluation, too."""
        self.evaluations += 1
        for listener in self.listeners:
            setattr(listener, self.phase, getattr(listener, self.phase) + 1)
        return f(t, y)

    def callback_step(self, t: Any, y: Any, dt: Any) -> None:
        """Raise where the next step, from t by dt, cannot be taken."""
        self.steps += 1
        if self.phase == "forward":
            for listener in self.listeners:
                listener.steps, listener.last_step = listener.steps + 1, abs(float(dt))
        if self.steps > self.solver.max_steps:
            raise self._error("too many steps", t)
        # Half a step, so that rounding never lets torchdiffeq's own assertion (t + dt > t) fail first.
        if self.solver.adaptive and t + dt / 2 == t:
            raise self._error("step underflow" if _finite((y, self.derivative)) else "non-finite state", t)

    callback_step_adjoint = callback_step

    def suit(self, size: float) -> None:
        """Tell what length would have suited the first step."""
        for listener in self.listeners:
            listener.first_step = size

    def reject_step(self, t: Any, y: Any, dt: Any) -> None:
        """Count a rejected step."""
        for listener in self.listeners:
            listener.rejected += 1

    def await_backward(self, path: State) -> None:
        """Note the moment the gradient arrives: evaluations from then on belong to the backward pass."""
        for component in (path,) if isinstance(path, Tensor) else path:
            if component.requires_grad:
                component.register_hook(self._begin_backward)

    def _parameters(self) -> list[int]:
        return [] if self.field is None else [id(parameter) for parameter in self.field.parameters()]

    def _begin_backward(self, _: Tensor) -> None:
        if self._parameters() != self.parameters:  # evaluated once more, it would depend on these
            raise InputError(
                "the field has other parameters than it was solved with, perhaps of torch.func.functional_call: pass "
                'gradient="direct"'
            )
        self.phase = "backward"
        self.steps = 0

    def check_finite(self, path: State, t: Tensor) -> None:
        """Raise where states are not finite; for methods whose steps are never rejected."""
        if not _finite(path):
            raise self._error("non-finite state", t)

    def _error(self, cause: str, t: Any) -> SolverError:
        return SolverError(cause, float(t), self.evaluations, self.solver)


def _finite(state: Any) -> bool:
    if isinstance(state, Tensor):
        return bool(torch.isfinite(state).all())
    return all(_finite(component) for component in state)
