"""Training objectives: modules whose ``forward(batch)`` returns the scalar loss, so that DDP synchronises gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from anode import InputError, Solver, count_evals
from cnf.continuous import Continuous
from cnf.density import Bound, Density, repeated
from cnf.transforms import ENERGIES, PathOptions

Batch = Tensor | tuple[Tensor, Tensor]


class MaximumLikelihood(nn.Module):
    """The negative log-likelihood, or its bound, averaged over a batch, in nats; with path energies, if wanted.

        loss = mean over the batch of [-log p(x) + sum_e weight_e E_e(x)]

    Energies are sums over the dimensions of a sample; see :class:`~cnf.Continuous`. A weight of 0.01 on means over
    dimensions beside a loss in bits/dim, as published, is 0.01 log 2 = 0.0069 here.

    Where a model draws auxiliary variables y, log p(x) is bounded by K draws (IWAE), log (1/K) sum_k p(y_k) / q(y_k).

    Args:
        model: any density.
        kinetic: weight of the kinetic energy.
        frobenius: weight of the squared norm of the Jacobian.
        acceleration: weight of the squared acceleration of state and log-density.
        steer: how far the time of the base is moved at random; see :class:`~cnf.PathOptions`.
        samples: K, for a bound.

    Raises:
        InputError: for a weight that is negative or not finite, ``steer`` outside [0, 1), or either for a model
            without an ODE; for K > 1 where there is no bound to tighten, or where the log-density is estimated.

    References:
        Finlay, Jacobsen, Nurbekyan, Oberman 2020, arXiv 2002.02798; Ghosh, Behl, Dupont, Torr, Namboodiri 2020,
        arXiv 2006.10711; Burda, Grosse, Salakhutdinov 2016, arXiv 1509.00519 (IWAE).

    Example:
        >>> import torch
        >>> from cnf import density_model
        >>> objective = MaximumLikelihood(density_model((2,)), acceleration=1e-3)
        >>> objective(torch.randn(16, 2)).backward()
        >>> sorted(objective.terms(torch.randn(16, 2), energies=("kinetic",)))
        ['acceleration', 'kinetic', 'nll']
    """

    def __init__(
        self,
        model: Density,
        kinetic: float = 0.0,
        frobenius: float = 0.0,
        acceleration: float = 0.0,
        steer: float = 0.0,
        samples: int = 1,
    ) -> None:
        super().__init__()
        weights = dict(zip(ENERGIES, (kinetic, frobenius, acceleration), strict=True))
        for name, weight in weights.items():
            if not (weight >= 0 and math.isfinite(weight)):
                raise InputError(f"{name}={weight} must be a weight from 0, such as 1e-3")
        self.model = model
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.steer = PathOptions(steer=steer).steer
        self._check_paths((*self.weights, *(["steer"] if steer else [])))
        model.check_draws(samples)
        self.samples = samples

    def forward(self, batch: Batch, kl: float = 1.0) -> Tensor:
        """The loss, a scalar.

        Args:
            batch: samples x (B, *S), or the pair (x, c) of samples and contexts (B, C).
            kl: share that counts of what q loses by being other than the simplest, see :class:`cnf.lifts.Lifted`;
                below 1, the loss is of no bound.
        """
        terms = self.terms(batch, kl=kl)
        loss = terms["nll"]
        for name, weight in self.weights.items():
            loss = loss + weight * terms[name]
        return loss

    def terms(self, batch: Batch, energies: Sequence[str] = (), kl: float = 1.0) -> dict[str, Tensor]:
        """What the loss is made of, unweighted: ``"nll"``, the energies of positive weight, and those asked for."""
        x, c = split(batch)
        asked = tuple(dict.fromkeys((*self.weights, *energies)))
        self._check_paths(asked)
        bound = self.model.elbo_on_path(*repeated(self.samples, x, c), PathOptions(asked, self.steer))
        nll = -self._over_draws(_warmed(bound, kl)).mean()
        return {"nll": nll, **{name: energy.mean() for name, energy in bound.energies.items()}}

    def _check_paths(self, asked: Sequence[str]) -> None:
        if asked and not any(isinstance(part, Continuous) for part in self.model.modules()):
            raise InputError(f"{', '.join(asked)}: the model has no ODE, whose paths it could be of")

    def _over_draws(self, log_weights: Tensor) -> Tensor:
        """The bound (B,) of K draws (K B,)."""
        if self.samples == 1:
            return log_weights
        return log_weights.view(self.samples, -1).logsumexp(0) - math.log(self.samples)


def _warmed(bound: Bound, kl: float) -> Tensor:
    """The bound, with a share of what it loses by the divergence of q from N(0, I)."""
    return bound.value if kl == 1 or bound.kl is None else bound.value + (1 - kl) * bound.kl


class WarmedUp(nn.Module):
    """Likelihood with the divergence of q from N(0, I) weighed by a share of the step, which keeps q from collapsing.

    Args:
        objective: of the likelihood.

    References:
        Sonderby, Raiko, Maaloe, Sonderby, Winther 2016, arXiv 1602.02282 (warm-up).
    """

    def __init__(self, objective: MaximumLikelihood) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: tuple[float, Batch]) -> Tensor:
        """The loss of a share, from 0 to 1, and a batch."""
        kl, inner = batch
        return self.objective(inner, kl)


class WarmStarted(nn.Module):
    """An objective whose solves begin with the step that suited the last one, which spares most of them a step or two.

    Where the solver is not adaptive, nothing changes. The length is part of the solvers of the model, and of the state
    of this module, so that training resumes as it would have gone on.

    Steps are then as long as the tolerance lets them be, so choose one that means something: a short first step also
    hides that a tolerance is loose. With half the evaluations, training learns to profit of the errors of the solver,
    where there are any, and likelihoods that are solved more tightly suffer.

    Args:
        objective: any, of a model with ODEs.

    Example:
        >>> import torch
        >>> from cnf import density_model
        >>> objective = WarmStarted(MaximumLikelihood(density_model((2,))))
        >>> x = torch.randn(16, 2)
        >>> with count_evals() as cold:
        ...     _ = objective(x)
        >>> with count_evals() as warm:
        ...     _ = objective(x)
        >>> warm.forward < cold.forward
        True
    """

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Any) -> Tensor:
        """The loss; see the objective."""
        with count_evals(self.objective) as nfe:
            loss = self.objective(batch)
        if nfe.first_step is not None:
            self._begin_with(nfe.first_step)
        return loss

    def _begin_with(self, first_step: float | None) -> None:
        for part in self.objective.modules():
            solver = getattr(part, "solver", None)
            if isinstance(solver, Solver) and solver.adaptive:
                part.solver = replace(solver, first_step=first_step)

    def get_extra_state(self) -> float | None:
        """The length of the next first step."""
        solvers = (getattr(part, "solver", None) for part in self.objective.modules())
        return next((solver.first_step for solver in solvers if isinstance(solver, Solver)), None)

    def set_extra_state(self, state: float | None) -> None:
        """Begin the next solve with a step of this length."""
        self._begin_with(state)


class InTurn(nn.Module):
    """Objectives of one model that take turns in its training.

    Args:
        objectives: of the stages, such as flow matching first and likelihood last.
    """

    def __init__(self, *objectives: nn.Module) -> None:
        super().__init__()
        self.objectives = nn.ModuleList(objectives)

    def forward(self, batch: tuple[int, Any]) -> Tensor:
        """The loss of a stage.

        Args:
            batch: the stage, from 0, and the batch of its objective.
        """
        stage, inner = batch
        return self.objectives[stage](inner)


def split(batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Samples and contexts of a batch, the contexts None where it has none.

    Raises:
        InputError: for no samples.
    """
    x, c = (batch, None) if isinstance(batch, Tensor) else batch
    if len(x) == 0:
        raise InputError("a batch of no samples has no loss: pass at least one")
    return x, c
