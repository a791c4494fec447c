"""What a training loop needs to know of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from train_flows.growth import Growth
from train_flows.training import Training


@dataclass(frozen=True)
class Task:
    """What is trained, on what, and how.

    Attributes:
        objective: to minimise.
        batch: what it takes at a step.
        validate: figures of the current weights.
        training: how to optimise.
        growth: of the learning rate; that of the batches is part of ``batch``.
    """

    objective: nn.Module
    batch: Callable[[int], Any]
    validate: Callable[[], dict[str, float]]
    training: Training
    growth: Growth = field(default_factory=Growth)
