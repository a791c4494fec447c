"""What fixed steps do to the likelihood while training, against adaptive ones; and finer ones, where that is too much.

Training profits of the errors of its solver where it can: with too few steps, its NLL departs from the true one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from anode import Solver, SolverError
from cnf import Density
from cnf.objectives import Batch
from train_flows import processes
from train_flows.portions import Given, given

SAMPLES = 500  # at most, to compare on
TOLERATED = 0.02  # bits a dimension


@torch.no_grad()
def compare(fixed: Density, adaptive: Density, batch: Batch) -> dict[str, float]:
    """The drift mean_x [NLL by fixed steps - NLL by adaptive ones], in nats, of the same weights and noise.

    The random generators stay as they are.

    Args:
        fixed: a density that solves by fixed steps.
        adaptive: the same that solves by adaptive ones.
        batch: samples x (N, *S), of which the first 500 are compared, or the pair (x, c) with contexts (N, C).

    Returns:
        ``nll_training_solver``, by fixed steps, of a bound from one draw, and the ``drift``; nothing, where the fixed
        steps fail.
    """

    def drifted(part: Given) -> tuple[float, float] | None:
        with torch.random.fork_rng():
            value = -adaptive.elbo_on_path(*part).value.double().mean().item()
        try:
            with torch.random.fork_rng():
                by_fixed = -fixed.elbo_on_path(*part).value.double().mean().item()
        except SolverError:
            return None
        return by_fixed, by_fixed - value

    x, c = given(batch)
    (found,) = processes.shared_out([(x[:SAMPLES], None if c is None else c[:SAMPLES])], drifted)
    return {} if found is None else dict(zip(("nll_training_solver", "drift"), found, strict=True))


class FixedSteps(nn.Module):
    """An objective whose solver takes steps of fixed size, which are halved once the likelihood drifts too far.

    The size is part of the solvers of the model, and of the state of this module, so that training resumes as it would
    have gone on.

    Args:
        objective: any, of a model with ODEs that are solved by fixed steps.
        drift: compares the solver with an adaptive one; see :func:`compare`.
        dimensions: of a sample.
        refine: whether to halve the steps, rather than just tell, once.
    """

    def __init__(
        self, objective: nn.Module, drift: Callable[[], dict[str, float]], dimensions: int, refine: bool
    ) -> None:
        super().__init__()
        self.objective = objective
        self.drift = drift
        self.bit = math.log(2) * dimensions  # a dimension, in nats a sample
        self.refine = refine
        self.told = False

    def forward(self, batch: Any) -> Tensor:
        """The loss; see the objective."""
        return self.objective(batch)

    def check(self) -> dict[str, float]:
        """Compare the solvers, and take finer steps from now on, if need be.

        Returns:
            Figures of :func:`compare`, and the ``step_size`` that they are of.
        """
        found, solver = self.drift(), self._solver()
        size: Any = solver.step_size
        bits = found["drift"] / self.bit if found else math.inf
        if not abs(bits) <= TOLERATED:
            how_far = f"drifts by {found['drift']:+.2g} nats, {bits:+.2g} bits/dim" if found else "cannot be had"
            self._too_far(solver, how_far)
        return {**found, "step_size": size}

    def _too_far(self, solver: Solver, how_far: str) -> None:
        size: Any = solver.step_size
        finer = self.refine and 4 / size <= solver.max_steps  # twice as many, and some to spare
        remedy = f"they are of {size / 2:g} from now on" if finer else "take more of them, by a smaller --step-size"
        if finer or not self.told:
            tqdm.write(f"note: by {solver.method} in steps of {size:g} the NLL {how_far}: {remedy}")
        self.told = self.told or not finer
        if finer:
            self._take(size / 2)

    def _solver(self) -> Solver:
        return next(part.solver for part in self._solving())

    def _take(self, size: float) -> None:
        for part in self._solving():
            part.solver = dataclasses.replace(part.solver, step_size=size)

    def _solving(self) -> list[Any]:
        return [part for part in self.objective.modules() if isinstance(getattr(part, "solver", None), Solver)]

    def get_extra_state(self) -> float:
        """The size of the next step."""
        size: Any = self._solver().step_size
        return size

    def set_extra_state(self, state: float) -> None:
        """Take steps of this size."""
        self._take(state)


def of_best(records: Sequence[Mapping[str, Any]], dimensions: int, discrete: bool) -> dict[str, Any] | None:
    """The drift of the best weights; None where it was not looked for, or could not be had.

    Args:
        records: of a training.
        dimensions: of a sample.
        discrete: whether its elements are, whose drift is told in bits a dimension.

    Returns:
        ``value``, in nats a sample; ``bits_per_dim``, the same for discrete data, else None; and ``step_size``.
    """
    best = min(records, key=lambda record: record["nll"], default={})
    if "drift" not in best:
        return None
    nats = best["drift"]
    bits = nats / (math.log(2) * dimensions) if discrete else None
    return {"value": nats, "bits_per_dim": bits, "step_size": best["step_size"]}


def describe(figure: Mapping[str, Any]) -> str:
    """The same in words."""
    bits = figure["bits_per_dim"]
    value = f"{figure['value']:+.2g} nats" if bits is None else f"{bits:+.2g} bits/dim"
    return f"{value} (validation, steps of {figure['step_size']:g} less adaptive ones)"
