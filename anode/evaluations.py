"""The number of function evaluations (NFE): solvers report it to whoever listens; nothing is stored on modules."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import nn


@dataclass
class Evaluations:
    """Calls of a right-hand side by the solver.

    Attributes:
        forward: those made while solving.
        backward: those made inside a backward pass, by the adjoint or once more from checkpoints.
        solves: how many solves made those of ``forward``.
        steps: how many steps they tried.
        rejected: how many of these steps were too inaccurate.
        last_step: length of the last step.
        first_step: length that would have suited the first step of the last solve that told, with which the next one
            may begin; torchdiffeq's do not tell.
    """

    forward: int = 0
    backward: int = 0
    solves: int = 0
    steps: int = 0
    rejected: int = 0
    last_step: float = 0.0
    first_step: float | None = None

    @property
    def each(self) -> float:
        """Evaluations a solve; none where nothing was solved."""
        return self.forward / max(1, self.solves)


_listeners: ContextVar[tuple[tuple[nn.Module | None, Evaluations], ...]] = ContextVar("_listeners", default=())


@contextmanager
def count_evals(module: nn.Module | None = None) -> Generator[Evaluations]:
    """Count the number of function evaluations (NFE) of every solve begun inside the block.

    One evaluation is one call of the right-hand side by the solver, whatever it computes besides the velocity.
    Those of its backward pass are counted whenever it runs, also after the block. Nothing is stored on the
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
    token = _listeners.set((*_listeners.get(), (module, evaluations)))
    try:
        yield evaluations
    finally:
        _listeners.reset(token)


def listening(field: nn.Module | None) -> list[Evaluations]:
    """Those who count the evaluations of a field, for a solver to report to."""
    return [
        evaluations
        for module, evaluations in _listeners.get()
        if module is None or any(field is part for part in module.modules())
    ]
