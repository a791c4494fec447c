"""Lifts: putting x into a larger or continuous space where a flow lives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from cnf.density import check_samples
from cnf.transforms import Transform


class Lifted(NamedTuple):
    """The result of a lift.

    Attributes:
        point: y.
        log_q: log q(y given x), (B,), in nats.
        kl: by how much q is above the simplest one, (B,): log q(a given x) - log N(a; 0, I) of augmented variables a,
            log q(u given x) of learned dequantisation noise u; None where nothing of the kind was drawn.
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
