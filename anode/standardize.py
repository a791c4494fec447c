"""Data in units of their standard deviations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn


class Moments(nn.Module):
    """Mean and scale of every element of a sample, stored with the weights.

    Args:
        shape: shape S of one sample.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(*shape))
        self.register_buffer("scale", torch.ones(*shape))

    def fit(self, x: Tensor) -> Self:
        """Take mean and standard deviation from the samples ``x`` (N, *S); a constant dimension keeps its scale."""
        std = x.double().std(dim=0, correction=0)
        self.mean.copy_(x.double().mean(dim=0))
        self.scale.copy_(torch.where(std > 0, std, 1.0))
        return self


class Standardize(Moments):
    """A first layer: (x - mean) / scale, elementwise.

    Args:
        shape: shape S of one sample.

    Example:
        >>> Standardize((2,)).fit(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))(torch.tensor([[2.0, 20.0]]))
        tensor([[1., 0.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Standardise x (B, *S)."""
        return (x - self.mean) / self.scale
