"""Mean and covariance of rows that come in parts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Moments:
    """Moments of all rows added so far, in float64.

    Attributes:
        count: how many.
        mean: (D,).
        scatter: (D, D), the sum of outer products of rows less the mean.

    References:
        Chan, Golub, LeVeque 1983, Algorithms for computing the sample variance, equation 1.5.

    Example:
        >>> moments = Moments()
        >>> for part in torch.tensor([[0.0], [2.0], [4.0], [6.0]]).split(3):
        ...     moments.add(part)
        >>> moments.mean, moments.scatter
        (tensor([3.], dtype=torch.float64), tensor([[20.]], dtype=torch.float64))
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    scatter: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        """Take in further rows (N, D), N at least one."""
        x = x.double()
        mean = x.mean(0)
        share = len(x) / (self.count + len(x))
        apart, centred = mean - self.mean, x - mean
        self.scatter = self.scatter + centred.T @ centred + share * self.count * torch.outer(apart, apart)
        self.mean = self.mean + share * apart
        self.count += len(x)
