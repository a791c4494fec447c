"""Inputs in units of their standard deviations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """A first layer: (x - mean) / scale, elementwise, both of them stored with the weights.

    Args:
        shape: shape S of one sample.

    Example:
        >>> Standardize((2,)).fit(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))(torch.tensor([[2.0, 20.0]]))
        tensor([[1., 0.]])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(*shape))
        self.register_buffer("scale", torch.ones(*shape))

    def fit(self, x: Tensor) -> Standardize:
        """Take mean and standard deviation from the samples ``x`` (N, *S); a constant dimension keeps its scale."""
        mean, scale = mean_and_scale(x)
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Standardise x (B, *S)."""
        return (x - self.mean) / self.scale


def mean_and_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over samples x (N, *S), in float64; the scale of a constant dimension is one."""
    std = x.double().std(dim=0, correction=0)
    return x.double().mean(dim=0), torch.where(std > 0, std, 1.0)
