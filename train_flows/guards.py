"""One optimiser step, and what becomes of it where a solve fails or a number is not finite."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from anode import InputError, Solver, SolverError, count_evals
from train_flows import processes

NOT_FINITE = "non-finite state"  # a cause of failing that no tolerance mends
LOOSER = (10.0, 100.0, 1000.0)  # multiples of the tolerances, one after the other


@dataclass(frozen=True)
class Guards:
    """What to do when a step goes wrong."""

    on_stiff: Literal["stop", "skip", "loosen"] = "stop"  # where a solve fails: end, skip the step, or solve it loosely
    max_skipped: int = 10  # steps in a row that may come to nothing, for their solve or a number that is not finite

    def check(self) -> None:
        """Raise an :class:`~anode.InputError` for a number out of range."""
        if self.max_skipped < 0:
            raise InputError(f"--max-skipped {self.max_skipped} must be at least 0")


@dataclass(frozen=True)
class Step:
    """What a step came to.

    Attributes:
        figures: of a step that changed the weights: ``loss``, ``grad_norm``, ``nfe_forward``, ``nfe_backward``.
        loosened: whether the tolerances were loosened for it.
        failure: why it changed nothing; None where it did.
        cause: the failure of a solve, where that was why.
    """

    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    loosened: bool = False
    failure: str | None = None
    cause: SolverError | None = None

    @property
    def stiff(self) -> bool:
        """Whether it changed nothing for a solve that is too hard, rather than for numbers that are not finite."""
        return self.cause is not None and self.cause.cause != NOT_FINITE


def take(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    clip: float,
    device: torch.device,
    loosen: bool = False,
) -> Step:
    """Take a step in all processes, or in none.

    Args:
        objective: a module whose ``forward(batch)`` returns the scalar loss.
        optimizer: of its parameters.
        batch: what it takes.
        clip: largest norm of the gradient.
        device: of the module.
        loosen: try again with looser tolerances where a solve fails.
    """
    failure = None
    for times in (1.0, *LOOSER) if loosen else (1.0,):
        optimizer.zero_grad()
        with loosened(objective, times), count_evals(objective) as nfe:
            loss, failure = _backward(objective, batch, device)
        if failure is not None and failure.cause == NOT_FINITE:
            break
        if failure is not None:
            continue
        processes.average_gradients(objective)
        norm = nn.utils.clip_grad_norm_(objective.parameters(), clip)
        figures = {"loss": float(loss), "grad_norm": float(norm)}
        if not processes.everywhere(all(map(math.isfinite, figures.values())), device):
            _stay(optimizer)
            return Step(failure=f"it has loss {figures['loss']} and gradient norm {figures['grad_norm']}")
        optimizer.step()
        return Step({**figures, "nfe_forward": nfe.forward, "nfe_backward": nfe.backward}, loosened=times > 1)
    _stay(optimizer)
    return Step(failure=f"its solve failed: {failure}", cause=failure)


def _stay(optimizer: torch.optim.Optimizer) -> None:
    """Take a step of an optimizer that changes nothing, for want of gradients, and lets the learning rate go on."""
    optimizer.zero_grad()
    optimizer.step()


def _backward(objective: nn.Module, batch: Any, device: torch.device) -> tuple[float, SolverError | None]:
    """The loss, with its gradient in the weights; and why there is none, where a solve of some process failed."""
    loss, failure = math.nan, None
    try:
        result = objective(batch)
        result.backward()
        loss = float(result.detach())
    except SolverError as error:
        failure = error
    if processes.everywhere(failure is None, device):
        return loss, None
    return loss, next(filter(None, processes.gathered(failure)))


@contextmanager
def loosened(module: nn.Module, times: float) -> Generator[None]:
    """Multiply the tolerances of all solvers within a module for a while."""
    parts: list[Any] = [part for part in module.modules() if isinstance(getattr(part, "solver", None), Solver)]
    tight: list[Solver] = [part.solver for part in parts]
    try:
        for part, solver in zip(parts, tight, strict=True):
            if times != 1:
                part.solver = dataclasses.replace(solver, rtol=times * solver.rtol, atol=times * solver.atol)
        yield
    finally:
        for part, solver in zip(parts, tight, strict=True):
            part.solver = solver
