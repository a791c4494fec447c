"""Lifts: putting x into a larger or continuous space where a flow lives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from anode import InputError
from cnf.density import check_samples
from cnf.transforms import Transform


class Lifted(NamedTuple):
    """The result of a lift.

    Attributes:
        point: y.
        log_q: log q(y given x), (B,), in nats.
        kl: log q(a given x) - log N(a; 0, I) of augmented variables a that were drawn, (B,); None where none were.
    """

    point: Tensor
    log_q: Tensor
    kl: Tensor | None = None


class Lift(nn.Module):
    """A random map y ~ q(y given x) whose x is known from y alone: x = project(y).

    For such a lift log p(x) >= E_q [log p(y) - log q(y given x)].
    """

    def forward(self, x: Tensor, c: Tensor | None = None) -> Lifted:
        """Draw y given x.

        Args:
            x: (B, *S).
            c: context, (B, C), or None.
        """
        raise NotImplementedError

    def project(self, y: Tensor) -> Tensor:
        """Drop back from y to x."""
        raise NotImplementedError


class Dequantize(Lift):
    """Uniform dequantisation of x in {0, ..., levels - 1}: y = (x + u) / levels, u ~ U[0, 1), elementwise.

    y lies in [0, 1) with log q(y given x) = D log(levels), D being the number of dimensions.

    Args:
        levels: how many values an element takes, 256 for 8-bit images.

    Raises:
        InputError: for fewer than 2 levels.

    References:
        Theis, van den Oord, Bethge 2016, arXiv 1511.01844, section 3.1.
    """

    like: Tensor

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        self.register_buffer("like", torch.empty(0), persistent=False)  # remembers the dtype
        if levels < 2:
            raise InputError(f"levels={levels} must be at least 2")
        self.levels = levels

    def forward(self, x: Tensor, c: Tensor | None = None) -> Lifted:
        """See :meth:`Lift.forward`; x is of any type, its values whole numbers.

        Raises:
            InputError: when a value is not one of the levels.
        """
        if x.ndim < 2:
            raise InputError(f"x of shape {tuple(x.shape)} is no batch: pass (B, *S)")
        value = x.to(self.like.dtype)
        if not ((value >= 0) & (value < self.levels) & (value == value.floor())).all():
            raise InputError(f"x must hold whole numbers from 0 to {self.levels - 1}; it holds others")
        y = (value + torch.rand_like(value)) / self.levels
        below_one = 1 - torch.finfo(y.dtype).eps / 2  # rounding of (x + u) / levels can reach 1
        log_q = value.new_full((len(x),), math.log(self.levels) * math.prod(x.shape[1:]))
        return Lifted(y.clamp(max=below_one), log_q)

    def project(self, y: Tensor) -> Tensor:
        """See :meth:`Lift.project`; values beyond the levels go to the nearest level."""
        return (y * self.levels).floor().clamp(0, self.levels - 1)


class Through(Lift):
    """An invertible transform as a lift: y = g(x), of which log q(y given x) = -log |det dg/dx| is left to account for.

    What a lift draws after it sees x as the transform brings it, such as standardised.

    Args:
        transform: g.
        shape: shape S of one sample.
    """

    like: Tensor

    def __init__(self, transform: Transform, shape: Sequence[int]) -> None:
        super().__init__()
        self.transform = transform
        self.shape = torch.Size(shape)
        self.register_buffer("like", torch.empty(0), persistent=False)  # remembers device and dtype

    def forward(self, x: Tensor, c: Tensor | None = None) -> Lifted:
        """See :meth:`Lift.forward`."""
        check_samples("x", x, c, self.shape, self.like.dtype)
        y, log_det, _ = self.transform(x)
        return Lifted(y, -log_det)

    def project(self, y: Tensor) -> Tensor:
        """See :meth:`Lift.project`."""
        return self.transform.decode(y)


class Lifts(Lift):
    """Lifts one after the other, the first of them next to the data.

    Args:
        lifts: in their order.
    """

    def __init__(self, lifts: Sequence[Lift]) -> None:
        super().__init__()
        self.lifts = nn.ModuleList(lifts)

    def _outward(self) -> list[Lift]:
        return cast("list[Lift]", list(self.lifts))

    def forward(self, x: Tensor, c: Tensor | None = None) -> Lifted:
        """See :meth:`Lift.forward`."""
        steps = []
        for lift in self._outward():
            steps.append(lift(x if not steps else steps[-1].point, c))
        kl = [step.kl for step in steps if step.kl is not None]
        return Lifted(steps[-1].point, torch.stack([step.log_q for step in steps]).sum(0), sum(kl) if kl else None)

    def project(self, y: Tensor) -> Tensor:
        """See :meth:`Lift.project`."""
        for lift in reversed(self._outward()):
            y = lift.project(y)
        return y
