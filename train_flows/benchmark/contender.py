"""What the speed benchmark asks of every package: one and the same continuous flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

# Of each layer (n_out, n_in) and (n_out,); time is the last input of the first.
Weights = Sequence[tuple[np.ndarray, np.ndarray]]
BASE, DATA = 0.0, 1.0  # times


class Contender:
    """The density of a flow from data at t = 1 to N(0, I) at t = 0.

    Args:
        weights: of the field.
        activation: of its hidden layers.
        tolerance: relative and absolute.
        exact: the trace, or one Rademacher probe of it.
    """

    def __init__(self, weights: Weights, activation: str, tolerance: float, exact: bool = True) -> None:
        self.weights = weights
        self.activation = activation
        self.tolerance = tolerance
        self.exact = exact

    def log_prob(self, x: Any) -> Any:
        """Log p(x), (B,)."""
        raise NotImplementedError

    def sample(self, z: Any) -> Any:
        """Base points to data."""
        raise NotImplementedError

    def gradients(self) -> list[np.ndarray]:
        """Those of the last :meth:`step`, shaped like the weights: (dW1, db1, dW2, ...)."""
        raise NotImplementedError

    def step(self, x: Any) -> None:
        """A training step, without the update of the weights: the loss -log p(x) and its gradients."""
        raise NotImplementedError

    def evaluations(self, work: Callable[[], Any]) -> int | None:
        """Of the field in a piece of work, forward and backward; None where they cannot be told."""
        raise NotImplementedError

    def points(self, x: np.ndarray) -> Any:
        """Points as the package wants them."""
        return torch.from_numpy(x)
