"""Base distributions: where a flow begins to sample and ends to evaluate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

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

    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draw n samples, (n, *S), without a graph.

        Args:
            n: how many.
            temperature: factor of the standard normal noise that they are made of; see :meth:`cnf.Density.sample`.

        Raises:
            InputError: for a negative number, or a temperature that is not positive and finite.
        """
        raise NotImplementedError

    def sample_beside(self, a: Tensor) -> Tensor:
        """Draw points (B, *S) that end with a (B, p, ...) along dimension 1, given it, without a graph but that of a.

        Raises:
            InputError: for a base that cannot.
        """
        raise InputError(f"{type(self).__name__} cannot be drawn given a part of it: take another base")

    def _noise(self, n: int, temperature: float = 1.0) -> Tensor:
        """Normal numbers (n, *S) of that standard deviation."""
        check_count(n)
        if not (temperature > 0 and math.isfinite(temperature)):
            raise InputError(f"temperature={temperature} must be a positive number, such as 0.8")
        return temperature * torch.randn(n, *self.shape, dtype=self.like.dtype, device=self.like.device)


class Normal(Base):
    """The standard normal base N(0, I).

    Args:
        shape: shape S of one sample.
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """See :meth:`Base.log_prob`: log N(z; 0, I)."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)

    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """See :meth:`Base.sample`."""
        return self._noise(n, temperature)

    def sample_beside(self, a: Tensor) -> Tensor:
        """See :meth:`Base.sample_beside`."""
        return torch.cat([self._noise(len(a))[:, : -a.shape[1]], a], 1)


class Conditional(Base):
    """A base of (z, a), joined along dimension 1, whose part z is a Gaussian that depends on a.

        p(z, a) = N(a; 0, I) N(z; m(a), diag(s(a)^2))

    Mean and scale come of :func:`moments`; it starts as N(0, I). Beside a field with a at rest, mode and scale of each
    of its flows need not be the work of the ODE.

    Args:
        shape: shape S of one sample of (z, a).
        extra: dimensions of a, or channels.
        hidden: width of the network.

    Raises:
        InputError: unless ``extra`` is from 1 and leaves something of S.
    """

    def __init__(self, shape: Sequence[int], extra: int, hidden: int = 64) -> None:
        super().__init__(shape)
        if not 1 <= extra < shape[0]:
            raise InputError(f"extra={extra} must be from 1 to {shape[0] - 1}, below dimension 1 of {tuple(shape)}")
        self.extra = extra
        self.moments = moments(extra, shape[0] - extra, hidden, images=len(shape) == 3)

    def log_prob(self, z: Tensor) -> Tensor:
        """See :meth:`Base.log_prob`."""
        z, a = z[:, : -self.extra], z[:, -self.extra :]
        mean, log_scale = self.moments(a).chunk(2, 1)
        eps = torch.cat([(z - mean) * torch.exp(-log_scale), a], 1)
        return -0.5 * (eps.square() + math.log(2 * math.pi)).flatten(1).sum(1) - log_scale.flatten(1).sum(1)

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """See :meth:`Base.sample`."""
        return self._beside(self._noise(n, temperature)[:, -self.extra :], temperature)

    def sample_beside(self, a: Tensor) -> Tensor:
        """See :meth:`Base.sample_beside`."""
        return self._beside(a, 1.0)

    def _beside(self, a: Tensor, temperature: float) -> Tensor:
        with torch.no_grad():
            mean, log_scale = self.moments(a).chunk(2, 1)
        eps = self._noise(len(a), temperature)[:, : -self.extra]
        return torch.cat([mean + log_scale.exp() * eps, a], 1)


def check_count(n: int) -> None:
    """Raise an :class:`~anode.InputError` for a negative number of samples."""
    if n < 0:
        raise InputError(f"n={n} samples: pass 0 or more")


def moments(n_in: int, n_out: int, hidden: int, images: bool) -> nn.Sequential:
    """A network for mean and log-scale of ``n_out`` dimensions or channels, given ``n_in``; both start at zero.

    It has one hidden layer: of a perceptron, or of 3x3 convolutions for images.
    """
    layer = partial(nn.Conv2d, kernel_size=3, padding=1) if images else nn.Linear
    network = nn.Sequential(layer(n_in, hidden), nn.SiLU(), layer(hidden, 2 * n_out))
    for parameter in network[-1].parameters():
        nn.init.zeros_(parameter)
    return network
