"""Transforms: invertible maps from data to base and back, with the log-determinant of their Jacobian."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anode import InputError
from anode.standardize import Moments


class Transport(NamedTuple):
    """The result of a transform.

    Attributes:
        point: where the points went, (B, *S).
        log_det: log |det J| of the map just applied, (B,), in nats.
    """

    point: Tensor
    log_det: Tensor


class Transform(nn.Module):
    """An invertible map z = g(x, c) from data to base.

    Subclasses implement :meth:`forward` and :meth:`inverse`, each with its own log-determinant, and override
    :meth:`encode` and :meth:`decode` where points alone are cheaper.
    """

    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        """Data to base: z = g(x, c) and log |det dg/dx|."""
        raise NotImplementedError

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        """Base to data: x with g(x, c) = z, and log |det dx/dz|."""
        raise NotImplementedError

    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Data to base, points only."""
        return self(x, c).point

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Base to data, points only."""
        return self.inverse(z, c).point


class Compose(Transform):
    """Transforms one after the other, the first of them next to the data.

    Args:
        transforms: in the order from data to base.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)

    def _inward(self) -> list[Transform]:
        return cast("list[Transform]", list(self.transforms))

    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        """See :meth:`Transform.forward`."""
        log_det = x.new_zeros(len(x))
        for transform in self._inward():
            x, step = transform(x, c)
            log_det = log_det + step
        return Transport(x, log_det)

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        """See :meth:`Transform.inverse`."""
        log_det = z.new_zeros(len(z))
        for transform in reversed(self._inward()):
            z, step = transform.inverse(z, c)
            log_det = log_det + step
        return Transport(z, log_det)

    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Transform.encode`."""
        for transform in self._inward():
            x = transform.encode(x, c)
        return x

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Transform.decode`."""
        for transform in reversed(self._inward()):
            z = transform.decode(z, c)
        return z


class Standardize(Moments, Transform):
    """z = (x - mean) / scale, elementwise.

    Mean and scale are part of the stored model, so that a flow speaks the original units of its data.

    Args:
        shape: shape S of one sample.

    Example:
        >>> standardize = Standardize((2,)).fit(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))
        >>> standardize.encode(torch.tensor([[1.0, 20.0]]))
        tensor([[0., 0.]])
    """

    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        """See :meth:`Transform.forward`."""
        return Transport((x - self.mean) / self.scale, -self.scale.log().sum().expand(len(x)))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        """See :meth:`Transform.inverse`."""
        return Transport(z * self.scale + self.mean, self.scale.log().sum().expand(len(z)))


class Logit(Transform):
    """z = logit(s), s = alpha + (1 - 2 alpha) x: opens the unit interval up to the real line, elementwise.

    Args:
        alpha: keeps x = 0 and x = 1 away from infinity; 1e-6 is usual for MNIST, 0.05 for natural images.

    Raises:
        InputError: when alpha is not in [0, 0.5).

    References:
        Dinh, Sohl-Dickstein, Bengio 2017, arXiv 1605.08803, section 4.1.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 <= alpha < 0.5:
            raise InputError(f"alpha={alpha} must lie in [0, 0.5), such as 0.05")
        self.alpha = alpha

    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        """See :meth:`Transform.forward`; x in [0, 1], which is checked."""
        z = torch.logit(self.alpha + (1 - 2 * self.alpha) * x)
        if not torch.isfinite(z).all():
            raise InputError(f"x must lie in [0, 1], and between them with alpha=0 (alpha={self.alpha}); it does not")
        return Transport(z, -self._log_slope(z))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        """See :meth:`Transform.inverse`."""
        x = (torch.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)
        return Transport(x, self._log_slope(z))

    def _log_slope(self, z: Tensor) -> Tensor:
        """Log |dx/dz| = log s (1 - s) / (1 - 2 alpha), summed over the dimensions of a sample."""
        log_slope = -F.softplus(z) - F.softplus(-z) - math.log(1 - 2 * self.alpha)
        return log_slope.flatten(1).sum(1)
