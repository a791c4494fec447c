"""What a density is trained for, from settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from torch import nn

from anode import InputError
from cnf import Conditional, Density, FlowMatching, InTurn, MaximumLikelihood, WarmedUp
from cnf.transforms import ENERGIES
from train_flows.settings import Augmentation, Objective, Scales
from train_flows.training import Training
from train_flows.unused import BOTH, LIKELIHOOD, MATCHING, OF_LIKELIHOOD

LIKELIHOOD_SHARE = 1 / 6  # of the steps, where flow matching goes before and nothing else is said: they are slower


def build(
    goal: Objective, augmented: Augmentation, model: Density, batch: Callable[[int], Any], steps: int
) -> tuple[nn.Module, Callable[[int], Any]]:
    """The objective, and the batch it takes at a step.

    Args:
        goal: what to minimise.
        augmented: how augmented dimensions take part.
        model: what to train.
        batch: samples of a step.
        steps: of the whole training.
    """
    first = 0 if goal.objective == LIKELIHOOD else matching_steps(goal, steps)
    likelihood, weighed = _likelihood(goal, augmented, model, batch, first)
    if goal.objective == LIKELIHOOD:
        return likelihood, weighed
    matching = FlowMatching(model, goal.coupling, goal.interpolation, goal.sigma, augmented.matching_kl)
    if goal.objective == MATCHING:
        if any(isinstance(part, Conditional) for part in model.modules()):
            raise InputError("--base conditional learns nothing by flow matching: use flow-matching+likelihood")
        return matching, batch
    return InTurn(matching, likelihood), lambda step: (1, weighed(step)) if step >= first else (0, batch(step))


def _likelihood(
    goal: Objective, augmented: Augmentation, model: Density, batch: Callable[[int], Any], first: int
) -> tuple[nn.Module, Callable[[int], Any]]:
    """That of likelihood from a first step on, and its batches."""
    objective = MaximumLikelihood(
        model, **{name: getattr(goal, name) for name in OF_LIKELIHOOD}, samples=augmented.samples
    )
    if not augmented.warm_up:
        return objective, batch
    return WarmedUp(objective), lambda step: (min(1.0, (step - first + 1) / augmented.warm_up), batch(step))


def matching_steps(goal: Objective, steps: int) -> int:
    """How many of the steps are of flow matching, where likelihood follows it."""
    last = goal.likelihood_steps
    return max(0, steps - (math.ceil(LIKELIHOOD_SHARE * steps) if last is None else last))


def staged(goal: Objective, training: Training) -> Training:
    """How to optimise in stages: a cosine of the learning rate begins anew where likelihood follows flow matching."""
    if goal.objective != BOTH or training.restart is not None:
        return training
    return dataclasses.replace(training, restart=matching_steps(goal, training.steps) or None)


def check(goal: Objective, augmented: Augmentation, scales: Scales, steps: int, conditional: bool = False) -> None:
    """Raise an :class:`~anode.InputError` for settings that contradict each other, the number of steps or the data."""
    if conditional and goal.coupling != "independent":
        raise InputError(
            f"--coupling {goal.coupling} would make base points tell of the class, those of sampling do not: drop it, "
            "or --conditional"
        )
    if goal.objective != LIKELIHOOD and (scales.multiscale or scales.blocks > 1):
        raise InputError(
            f"--objective {goal.objective} is of one ODE: pass --no-multiscale --blocks 1, or --objective likelihood"
        )
    if augmented.warm_up < 0:
        raise InputError(f"--warm-up {augmented.warm_up} must be a number of steps from 0")
    last = goal.likelihood_steps
    if goal.objective == BOTH and last is not None and not 0 < last < steps:
        raise InputError(f"--likelihood-steps {last} must be from 1 to {steps - 1}, below --steps")


def energies(goal: Objective) -> list[str]:
    """The path energies that are weighed or asked for: what to report with every validation."""
    return [name for name in ENERGIES if getattr(goal, name) or name in goal.energies]
