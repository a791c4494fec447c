"""The planar flow: a discrete normalizing flow of layers with one hidden unit each, inverted by a scalar equation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anode import InputError
from cnf.transforms import PathOptions, Transform, Transport

NEWTON_STEPS = 100


class Planar(Transform):
    r"""K planar layers f(z) = z + û tanh(w'z + b), one after the other from base to data.

    A layer is invertible where w'û > -1, which holds for any parameters u, w, b with

        û = u + (m(w'u) - w'u) w / |w|^2,    m(x) = -1 + log(1 + e^x),    w'û = m(w'u),

    and log |det df/dz| = log(1 + w'û (1 - tanh^2(w'z + b))). From data to base, y = f(z), a = w'z + b is the only root
    of a + w'û tanh(a) = w'y + b, found to machine precision; its derivatives are those of the implicit function, to any
    order. So base to data is the cheap direction, and both are exact.

    The layers start near the identity, with û small but not zero (without it w and b would have no gradient), and
    with different w and b, so that they can learn different things. w = 0 has no û: do not start there.

    Args:
        dim: number D of dimensions; samples are vectors.
        layers: K.

    Raises:
        InputError: when ``dim`` or ``layers`` is less than 1.

    References:
        Rezende, Mohamed 2015, arXiv 1505.05770, section 4.1 and appendix A.1.

    Example:
        >>> from cnf import Flow, Normal
        >>> flow = Flow(Planar(2, layers=8), Normal((2,)))
        >>> flow.sample(7).shape, flow.log_prob(torch.randn(5, 2)).shape
        (torch.Size([7, 2]), torch.Size([5]))
    """

    def __init__(self, dim: int, layers: int = 1) -> None:
        super().__init__()
        if min(dim, layers) < 1:
            raise InputError(f"dim={dim} and layers={layers} must be at least 1")
        self.dim = dim
        w = torch.randn(layers, dim) / math.sqrt(dim)
        no_move = math.log(math.e - 1) * w / w.square().sum(1, keepdim=True)  # m(w'u) = 0, hence û = 0
        self.w = nn.Parameter(w)
        self.u = nn.Parameter(no_move + 0.1 * torch.randn(layers, dim) / math.sqrt(dim))
        self.b = nn.Parameter(torch.randn(layers))

    def forward(self, x: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.forward`; x (B, D), no context.

        Raises:
            InputError: for another shape, or a context.
        """
        self._check("x", x, c)
        log_det = x.new_zeros(len(x))
        for u, w, b, slack in reversed(self._layers()):
            h = torch.tanh(_Root.apply(x @ w + b, slack))
            x = x - torch.outer(h, u)
            log_det = log_det - _slope(h, slack).log()
        return Transport(x, log_det)

    def inverse(self, z: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.inverse`; z (B, D), no context.

        Raises:
            InputError: for another shape, or a context.
        """
        self._check("z", z, c)
        log_det = z.new_zeros(len(z))
        for u, w, b, slack in self._layers():
            h = torch.tanh(z @ w + b)
            z = z + torch.outer(h, u)
            log_det = log_det + _slope(h, slack).log()
        return Transport(z, log_det)

    def _layers(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """û (D,), w (D,), b () and the slack 1 + w'û () of every layer, from base to data."""
        along = (self.w * self.u).sum(1)
        slack = F.softplus(along)
        push = (slack - 1 - along) / self.w.square().sum(1)
        return list(zip(self.u + push.unsqueeze(1) * self.w, self.w, self.b, slack, strict=True))

    def _check(self, name: str, x: Tensor, c: Tensor | None) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise InputError(f"{name} of shape {tuple(x.shape)} does not fit planar layers: pass (B, {self.dim})")
        if c is not None:
            raise InputError(
                f"c of shape {tuple(c.shape)} does not fit planar layers, which have no context: pass None"
            )

    def extra_repr(self) -> str:
        """Dimensions and layers, for ``print``."""
        return f"dim={self.dim}, layers={len(self.b)}"


def _slope(h: Tensor, slack: Tensor) -> Tensor:
    """1 + s (1 - h^2) for s = slack - 1, without cancellation where the slack is tiny."""
    return h * h + slack * (1 - h * h)


class _Root(torch.autograd.Function):
    """The root a (B,) of a + s tanh(a) = r (B,), s = slack - 1 > -1.

    By the implicit function theorem da = (dr - tanh(a) ds) / (1 + s (1 - tanh^2(a))). The rule is a function of a
    itself, which is why derivatives of the derivative are right as well.
    """

    @staticmethod
    def forward(r: Tensor, slack: Tensor) -> Tensor:
        # |a| is the root for |r|. There the left side is convex for s < 0 and concave for s > 0, and Newton's method
        # that starts above the root, or below it, approaches it from that side only. A step the other way is rounding.
        size, s = r.abs(), slack - 1
        a = F.relu(size - s)
        for _ in range(NEWTON_STEPS):  # tens at worst, where the slack is tiny and so is r
            h = torch.tanh(a)
            step = s.sign() * F.relu(s.sign() * (size - a - s * h)) / _slope(h, slack)
            a, before = a + step, a
            if torch.equal(a, before):
                break
        return torch.copysign(a, r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, slack = ctx.saved_tensors
        h = torch.tanh(a)
        through = grads[0] / _slope(h, slack)
        return through, -(through * h).sum()
