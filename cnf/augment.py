"""Augmentation of a density: further dimensions that are drawn, not padded by zeros."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anode import InputError
from cnf.bases import moments
from cnf.lifts import Lift, Lifted

POSTERIORS = ("normal", "learned")


class VariationalAugment(Lift):
    """y = (x, a), joined along dimension 1, of a ~ q(a given x).

    The density of x is that of y with a integrated out, log p(x) = log integral p(x, a) da, of which
    E_q [log p(x, a) - log q(a given x)] is a lower bound.

    Args:
        extra: dimensions of a, or channels of the size of the image.
        posterior: ``"normal"``: q = N(0, I), whatever x. ``"learned"``: a Gaussian whose mean and scale
            :func:`cnf.bases.moments` makes of x, which should be standardised; it starts at N(0, I).
        shape: shape S of one sample, for ``"learned"``.
        hidden: width of that network.

    Raises:
        InputError: for less than one dimension, an unknown posterior, or a learned one without a shape.

    References:
        Huang, Dinh, Courville 2020, arXiv 2002.07101; Chen, Lu, Chenli, Zhu, Tian 2020, arXiv 2002.09741.

    Example:
        >>> y, log_q, _ = VariationalAugment(3)(torch.randn(5, 2))
        >>> y.shape, log_q.shape
        (torch.Size([5, 5]), torch.Size([5]))
    """

    def __init__(
        self, extra: int, posterior: str = "normal", shape: Sequence[int] | None = None, hidden: int = 64
    ) -> None:
        super().__init__()
        if extra < 1:
            raise InputError(f"extra={extra} must be at least 1")
        if posterior not in POSTERIORS:
            raise InputError(f"posterior={posterior!r} is unknown; choose one of {', '.join(POSTERIORS)}")
        self.extra = extra
        self.moments: nn.Sequential | None = None
        if posterior == "learned":
            if shape is None:
                raise InputError("posterior='learned' is a network of x: pass the shape of one sample")
            self.moments = moments(shape[0], extra, hidden, images=len(shape) == 3)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Lifted:
        """See :meth:`Lift.forward`; the context has no part in q."""
        if x.ndim < 2:
            raise InputError(f"x of shape {tuple(x.shape)} has no dimension to augment: pass (B, D) or (B, C, H, W)")
        eps = torch.randn(len(x), self.extra, *x.shape[2:], dtype=x.dtype, device=x.device)
        a, log_normal = eps, _log_normal(eps)
        log_q = log_normal
        if self.moments is not None:
            mean, log_scale = self.moments(x).chunk(2, 1)
            a = mean + log_scale.exp() * eps
            log_q = log_normal - log_scale.flatten(1).sum(1)
        return Lifted(torch.cat([x, a], 1), log_q, log_q - _log_normal(a))

    def project(self, y: Tensor) -> Tensor:
        """See :meth:`Lift.project`."""
        return y[:, : -self.extra]


def _log_normal(a: Tensor) -> Tensor:
    return -0.5 * (a.square() + math.log(2 * math.pi)).flatten(1).sum(1)
