"""Training objectives: modules whose ``forward(batch)`` returns the scalar loss, so that DDP synchronises gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from anode import InputError
from cnf.continuous import Continuous
from cnf.flow import Density
from cnf.transforms import ENERGIES, Path

Batch = Tensor | tuple[Tensor, Tensor]


class MaximumLikelihood(nn.Module):
    """The negative log-likelihood, or its bound, averaged over a batch, in nats; with path energies, if wanted.

        loss = mean over the batch of [-log p(x) + sum_e weight_e E_e(x)]

    Energies are sums over the dimensions of a sample; see :class:`~cnf.Continuous`. A weight of 0.01 on means over
    dimensions beside a loss in bits/dim, as published, is 0.01 log 2 = 0.0069 here.

    Args:
        model: a :class:`~cnf.Flow` or :class:`~cnf.LiftedFlow`.
        kinetic: weight of the kinetic energy.
        frobenius: weight of the squared norm of the Jacobian.
        acceleration: weight of the squared acceleration of state and log-density.
        steer: how far the time of the base is moved at random; see :class:`~cnf.Path`.

    Raises:
        InputError: for a weight that is negative or not finite, ``steer`` outside [0, 1), or either for a model
            without an ODE.

    References:
        Finlay, Jacobsen, Nurbekyan, Oberman 2020, arXiv 2002.02798; Ghosh, Behl, Dupont, Torr, Namboodiri 2020,
        arXiv 2006.10711.

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
    ) -> None:
        super().__init__()
        weights = dict(zip(ENERGIES, (kinetic, frobenius, acceleration), strict=True))
        for name, weight in weights.items():
            if not (weight >= 0 and math.isfinite(weight)):
                raise InputError(f"{name}={weight} must be a weight from 0, such as 1e-3")
        self.model = model
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.steer = Path(steer=steer).steer
        if (self.weights or steer) and not any(isinstance(part, Continuous) for part in model.modules()):
            raise InputError(f"{', '.join(self.weights) or 'steer'}: the model has no ODE with paths to change")

    def forward(self, batch: Batch) -> Tensor:
        """The loss, a scalar.

        Args:
            batch: samples x (B, *S), or the pair (x, c) of samples and contexts (B, C).
        """
        terms = self.terms(batch)
        loss = terms["nll"]
        for name, weight in self.weights.items():
            loss = loss + weight * terms[name]
        return loss

    def terms(self, batch: Batch, energies: Sequence[str] = ()) -> dict[str, Tensor]:
        """What the loss is made of, unweighted: ``"nll"``, the energies of positive weight, and those asked for."""
        x, c = split(batch)
        asked = tuple(dict.fromkeys((*self.weights, *energies)))
        bound = self.model.elbo_on_path(x, c, Path(asked, self.steer))
        return {"nll": -bound.value.mean(), **{name: energy.mean() for name, energy in bound.energies.items()}}


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
    """Samples and contexts of a batch, the contexts None where it has none."""
    return (batch, None) if isinstance(batch, Tensor) else batch
