"""The solvers within a model: found, exchanged, stored."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from typing import Any, TypeVar

from torch import nn

from anode.solver import Solver

M = TypeVar("M", bound=nn.Module)


def with_solver(model: M, solver: Solver) -> M:
    """A copy of a model with another solver in each of its ODEs.

    Parameters and buffers are shared, so cast or move the model first.

    Example:
        >>> from anode import MLPField, ODEBlock, Solver
        >>> net = nn.Sequential(nn.Linear(2, 3), ODEBlock(MLPField(3)))
        >>> with_solver(net, Solver(rtol=1e-8, atol=1e-8))[1].solver.rtol
        1e-08
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    other: Any = copy.deepcopy(model, memo=shared)
    for part in other.modules():
        if isinstance(getattr(part, "solver", None), Solver):
            part.solver = solver
    return other


def solver_of(model: nn.Module) -> Solver | None:
    """The solver of the first ODE in a model; None for a model without."""
    solvers = (getattr(part, "solver", None) for part in model.modules())
    return next((solver for solver in solvers if isinstance(solver, Solver)), None)


def config_of(model: nn.Module, arguments: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The arguments that rebuild a model, with the solver it has now; None for a model composed by hand."""
    if arguments is None:
        return None
    solver = solver_of(model)
    return {**arguments, **({} if solver is None else {"solver": asdict(solver)})}
