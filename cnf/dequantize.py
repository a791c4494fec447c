"""Dequantisation: noise that fills the gaps between the values of discrete data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anode import InputError
from cnf.bases import moments
from cnf.lifts import Lift, Lifted

NOISES = ("uniform", "learned")


class Dequantize(Lift):
    """Dequantisation of x in {0, ..., levels - 1}: y = (x + u) / levels, u ~ q(u given x) in [0, 1), elementwise.

    y lies in [0, 1) with log q(y given x) = log q(u given x) + D log(levels), D being the number of dimensions.

    - ``"uniform"``: u ~ U[0, 1), whatever x.
    - ``"learned"``: u = sigmoid(m(x) + s(x) logit(w)), w ~ U[0, 1), where :func:`cnf.bases.moments` makes m and log s
      of x. It starts as the uniform one, and raises the bound by noise that suits the density of y.

    Args:
        levels: how many values an element takes, 256 for 8-bit images.
        noise: q.
        shape: shape S of one sample, for ``"learned"``.
        hidden: width of its network.

    Raises:
        InputError: for fewer than 2 levels, an unknown noise, or a learned one without a shape.

    References:
        Theis, van den Oord, Bethge 2016, arXiv 1511.01844, section 3.1 (uniform); Ho, Chen, Srinivas, Duan, Abbeel
        2019, arXiv 1902.00275, section 3.1 (variational).
    """

    like: Tensor

    def __init__(
        self, levels: int = 256, noise: str = "uniform", shape: Sequence[int] | None = None, hidden: int = 32
    ) -> None:
        super().__init__()
        self.register_buffer("like", torch.empty(0), persistent=False)  # remembers the dtype
        if levels < 2:
            raise InputError(f"levels={levels} must be at least 2")
        if noise not in NOISES:
            raise InputError(f"noise={noise!r} is unknown; choose one of {', '.join(NOISES)}")
        self.levels = levels
        self.noise = noise
        self.moments: nn.Sequential | None = None
        if noise == "learned":
            if shape is None:
                raise InputError("noise='learned' is a network of x: pass the shape of one sample")
            self.moments = moments(shape[0], shape[0], hidden, images=len(shape) == 3)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Lifted:
        """See :meth:`Lift.forward`; x is of any type, its values whole numbers.

        Raises:
            InputError: when a value is not one of the levels.
        """
        if x.ndim < 2:
            raise InputError(f"x of shape {tuple(x.shape)} is no batch: pass (B, *S)")
        value = x.to(self.like.dtype)
        wrong = value[~((value >= 0) & (value < self.levels) & (value == value.floor()))]
        if len(wrong):
            raise InputError(f"x must hold whole numbers from 0 to {self.levels - 1}; it holds {wrong[0]:g}")
        u, log_q = self._drawn(value)
        y = (value + u) / self.levels
        below_one = 1 - torch.finfo(y.dtype).eps / 2  # rounding of (x + u) / levels can reach 1
        scale = math.log(self.levels) * math.prod(x.shape[1:])
        return Lifted(y.clamp(max=below_one), log_q + scale, None if self.moments is None else log_q)

    def project(self, y: Tensor) -> Tensor:
        """See :meth:`Lift.project`; values beyond the levels go to the nearest level."""
        return (y * self.levels).floor().clamp(0, self.levels - 1)

    def _drawn(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The noise u (B, *S), and log q(u given x) (B,)."""
        w = torch.rand_like(value)
        if self.moments is None:
            return w, value.new_zeros(len(value))
        least = torch.finfo(w.dtype).tiny  # keeps w = 0 from an infinite logit
        v = torch.logit(w.clamp(min=least))
        mean, log_scale = self.moments(2 * (value + 0.5) / self.levels - 1).chunk(2, 1)
        logit = mean + log_scale.exp() * v
        below_one = 1 - torch.finfo(w.dtype).eps / 2
        log_q = _log_slope(v) - log_scale - _log_slope(logit)  # w is uniform: the rest is |dw/du|
        return torch.sigmoid(logit).clamp(max=below_one), log_q.flatten(1).sum(1)


def _log_slope(v: Tensor) -> Tensor:
    """Log of the derivative of the sigmoid."""
    return -F.softplus(v) - F.softplus(-v)
