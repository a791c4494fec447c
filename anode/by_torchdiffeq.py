"""Solves by torchdiffeq: of its methods, and with adjoint gradients of any."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from anode.right_hand_side import RightHandSide, State
from anode.runge_kutta import Solution, even_grid

if TYPE_CHECKING:
    from anode.solver import Solver

MAX_ORDER = 5  # of Adams methods: torchdiffeq's default of 12 amplifies rounding until it dominates


def solve(
    solver: Solver, rhs: RightHandSide, y0: State, times: Tensor, params: Sequence[Tensor], passive: int
) -> Solution:
    """The components at every time but the first.

    Args:
        solver: method, tolerances and gradient.
        rhs: the right-hand side.
        y0: initial state.
        times: strictly monotone.
        params: what gets gradients from the adjoint, besides the state.
        passive: the last so many components have no part in the choice of steps.
    """
    settings: dict[str, Any] = {"rtol": solver.rtol, "atol": solver.atol, "method": solver.method}
    settings["options"] = _options(solver, times[-1:], passive)
    if solver.gradient == "direct":
        path = odeint(rhs, y0, times, **settings)
    else:
        backwards = {**_options(solver, times[:-1]), "norm": "seminorm"}
        path = odeint_adjoint(rhs, y0, times, **settings, adjoint_options=backwards, adjoint_params=tuple(params))
        rhs.await_backward(path)
    components = (path,) if isinstance(path, Tensor) else path
    return Solution([tuple(state) for state in zip(*(part[1:] for part in components), strict=True)], None)


def _options(solver: Solver, land_on: Tensor, passive: int = 0) -> dict[str, Any]:
    if solver.adaptive:
        first = {} if solver.first_step is None else {"first_step": solver.first_step}
        norm = partial(_error_norm, passive=passive)
        return {"step_t": land_on, "dtype": land_on.dtype, "norm": norm, **first}
    step_size = solver.step_size
    assert step_size is not None
    options: dict[str, Any] = {"grid_constructor": lambda f, y0, times: even_grid(times, step_size)}
    return {**options, "max_order": MAX_ORDER} if solver.method.endswith("adams") else options


@torch.no_grad()
def _error_norm(state: State, passive: int = 0) -> Tensor:
    """The largest root mean square of the components; outside the graph, so that steps are constants to gradients."""
    components = (state,) if isinstance(state, Tensor) else state[: len(state) - passive]
    norms = [component.square().mean().sqrt() for component in components if component.numel()]
    return torch.stack(norms).max() if norms else components[0].new_zeros(())
