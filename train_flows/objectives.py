"""The objective of a density: flow matching, maximum likelihood, or one after the other."""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor

from cnf import Density, FlowMatching, MaximumLikelihood
from cnf.maximum_likelihood import Batch
from train_flows.settings import BOTH, LIKELIHOOD, MATCHING, Objective, Training

LIKELIHOOD_SHARE = 1 / 6  # of the steps after flow matching, unless --likelihood-steps is given: they are slower


class DensityObjective:
    """The loss of a density as a function of the step.

    With flow-matching+likelihood, likelihood begins at step ``training.likelihood_from``, or at once if that is None.

    Args:
        objective: which losses, with their weights.
        training: says when likelihood begins, and over how many steps the weight of the KL term rises to 1 then.
        model: the density to train.

    Raises:
        InputError: if the model cannot be trained like this.
    """

    def __init__(self, objective: Objective, training: Training, model: Density) -> None:
        self.training = training
        self.likelihood = self.matching = None
        if objective.objective != MATCHING:
            self.likelihood = MaximumLikelihood(model, **weights(objective))  # ty: ignore[invalid-argument-type]
        if objective.objective != LIKELIHOOD:
            self.matching = FlowMatching(model, objective.coupling)

    def __call__(self, batch: Batch, step: int) -> Tensor:
        """Return the scalar loss of the batch of a step."""
        steps = step - (self.training.likelihood_from or 0)  # of likelihood, before this one
        if self.likelihood is None or (self.matching is not None and steps < 0):
            assert self.matching is not None
            return self.matching(batch)
        warm_up = self.training.kl_warm_up
        return self.likelihood(batch, kl_weight=min(1.0, (steps + 1) / warm_up) if warm_up else 1.0)


def weights(objective: Objective) -> dict[str, float]:
    """Return the weights of the path energies, by name."""
    return {name: getattr(objective, name) for name in ("kinetic", "frobenius", "acceleration")}


def staged(objective: Objective, training: Training) -> Training:
    """Return the settings of training with the step at which likelihood follows flow matching."""
    if objective.objective != BOTH:
        return training
    last = objective.likelihood_steps or math.ceil(LIKELIHOOD_SHARE * training.steps)
    return dataclasses.replace(training, likelihood_from=training.steps - last or None)
