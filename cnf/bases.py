"""Base distributions: where a flow begins to sample and ends to evaluate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anode import InputError


class Base(nn.Module):
    """A distribution of base points z.

    Args:
        shape: shape S of one sample.
    """

    like: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        self.register_buffer("like", torch.empty(0), persistent=False)  # remembers device and dtype

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats, (B,), of points (B, *S)."""
        raise NotImplementedError

    def sample(self, n: int) -> Tensor:
        """Draw n samples, (n, *S), without a graph."""
        raise NotImplementedError

    def _noise(self, n: int) -> Tensor:
        """Standard normal numbers (n, *S)."""
        if n < 0:
            raise InputError(f"n={n} samples: pass 0 or more")
        return torch.randn(n, *self.shape, dtype=self.like.dtype, device=self.like.device)


class Normal(Base):
    """The standard normal base N(0, I).

    Args:
        shape: shape S of one sample.
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """See :meth:`Base.log_prob`: log N(z; 0, I)."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)

    def sample(self, n: int) -> Tensor:
        """See :meth:`Base.sample`."""
        return self._noise(n)
