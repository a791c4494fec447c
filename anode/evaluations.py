"""The number of function evaluations (NFE) of ODE solves."""

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
        forward: evaluations while solving.
        backward: evaluations in a backward pass, by the adjoint or by replayed steps.
        solves: number of solves.
        steps: number of steps tried while solving, rejected steps included.
    """

    forward: int = 0
    backward: int = 0
    solves: int = 0
    steps: int = 0

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
