"""First layers that bring data to a scale of about one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from anode.errors import InputError


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


class Pixels(nn.Module):
    """A first layer: x / (levels - 1), from whole numbers below ``levels`` to [0, 1].

    Images thus stay what they are, 8 bits a value, until a batch of them is needed.

    Args:
        levels: number of values a pixel takes: 256 for 8 bits.

    Raises:
        InputError: for fewer than 2 levels.

    Example:
        >>> Pixels(256)(torch.tensor([[0, 51, 255]], dtype=torch.uint8))
        tensor([[0.0000, 0.2000, 1.0000]])
    """

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        if levels < 2:
            raise InputError(f"levels={levels} must be at least 2")
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        """Scale x (B, *S) of whole or real numbers."""
        return (x if x.is_floating_point() else x.to(torch.get_default_dtype())) / (self.levels - 1)
