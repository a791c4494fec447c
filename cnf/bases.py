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


class Mixture(Base):
    """A mixture of K Gaussians with diagonal covariance, whose means, scales and weights are learned.

        p(z) = sum_k weights_k N(z; means_k, diag(scales_k^2))

    A base of several pieces spares the flow from tearing one Gaussian apart. It starts near the standard normal, all
    weights equal: means are drawn from N(0, 0.1^2) and every scale is sqrt(1 - 0.1^2), so that the mean of p over that
    draw is N(0, I), and components differ enough to part. With one component it starts at N(0, I) itself.

    Args:
        shape: shape S of one sample.
        components: K.

    Raises:
        InputError: when ``components`` is less than 1.

    Example:
        >>> base = Mixture((2,), components=3)
        >>> base.log_prob(base.sample(5)).shape, base.weights.shape
        (torch.Size([5]), torch.Size([3]))
    """

    def __init__(self, shape: Sequence[int], components: int = 8) -> None:
        super().__init__(shape)
        if components < 1:
            raise InputError(f"components={components} must be at least 1")
        spread = 0.1 if components > 1 else 0.0
        self.means = nn.Parameter(spread * torch.randn(components, *self.shape))
        self.log_scales = nn.Parameter(torch.full_like(self.means, math.log1p(-(spread**2)) / 2))
        self.logits = nn.Parameter(torch.zeros(components))

    @property
    def weights(self) -> Tensor:
        """The probabilities of the components, (K,)."""
        return self.logits.softmax(0)

    def log_prob(self, z: Tensor) -> Tensor:
        """See :meth:`Base.log_prob`; by logsumexp over the components."""
        eps = (z.unsqueeze(1) - self.means) * torch.exp(-self.log_scales)  # (B, K, *S)
        log_normal = -(0.5 * (eps.square() + math.log(2 * math.pi)) + self.log_scales).flatten(2).sum(2)
        return torch.logsumexp(self.logits.log_softmax(0) + log_normal, 1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """See :meth:`Base.sample`."""
        eps = self._noise(n)
        # The first of K clocks of rates weights_k to ring is k with that probability, also for n = 0.
        k = (self.logits - self.logits.new_empty(n, len(self.logits)).exponential_().log()).argmax(1)
        return self.means[k] + self.log_scales.exp()[k] * eps
