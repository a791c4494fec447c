"""Planar flows: layers with one hidden unit each, and their continuous limit as a vector field."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from anode.errors import InputError
from anode.fields import Field, check_context, flatten_samples
from cnf.transforms import Transform, Transport

NEWTON_STEPS = 100


class Planar(Transform):
    r"""A chain of K planar layers f(z) = z + û tanh(w'z + b), from base to data.

    A layer is invertible if w'û > -1, which holds for any parameters u, w, b with

        û = u + (m(w'u) - w'u) w / |w|^2,    m(x) = -1 + log(1 + e^x),    w'û = m(w'u),

    and log |det df/dz| = log(1 + w'û (1 - tanh^2(w'z + b))). From data to base, y = f(z), a = w'z + b is the only root
    of a + w'û tanh(a) = w'y + b, found to machine precision; its derivatives are those of the implicit function, to any
    order. Base to data is the cheap direction; both are exact.

    The layers start near the identity, with û small but not zero, since otherwise w and b would have no gradient, and
    with different w and b, so that they can learn different directions. û is undefined at w = 0: do not start there.

    Args:
        dim: number D of dimensions; samples are vectors without a context.
        layers: K.

    Raises:
        InputError: if ``dim`` or ``layers`` is less than 1; by the maps, for samples of another shape, or a context.

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

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        self._check("x", x, c)
        log_det = x.new_zeros(len(x))
        for u, w, b, slack in reversed(self._layers()):
            h = torch.tanh(_Root.apply(x @ w + b, slack))
            x = x - torch.outer(h, u)
            log_det = log_det - _slope(h, slack).log()
        return Transport(x, log_det)

    @override
    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        self._check("z", z, c)
        log_det = z.new_zeros(len(z))
        for u, w, b, slack in self._layers():
            h = torch.tanh(z @ w + b)
            z = z + torch.outer(h, u)
            log_det = log_det + _slope(h, slack).log()
        return Transport(z, log_det)

    def _layers(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return û (D,), w (D,), b () and the slack 1 + w'û () of every layer, from base to data."""
        along = (self.w * self.u).sum(1)
        slack = F.softplus(along)
        push = (slack - 1 - along) / self.w.square().sum(1)
        return list(zip(self.u + push.unsqueeze(1) * self.w, self.w, self.b, slack, strict=True))

    def _check(self, name: str, x: Tensor, c: Tensor | None) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise InputError(f"{name} of shape {tuple(x.shape)} does not fit planar layers: pass (B, {self.dim})")
        if c is not None:
            raise InputError(f"c of shape {tuple(c.shape)} does not fit planar layers without context: pass None")

    @override
    def extra_repr(self) -> str:
        return f"dim={self.dim}, layers={len(self.b)}"


class PlanarField(Field):
    r"""A sum of M gated planar units, with its divergence in closed form.

        f(t, x) = sum_n sigma_n(t) u_n tanh(w_n'x + b_n),
        tr(df/dx) = sum_n sigma_n(t) (u_n'w_n) (1 - tanh^2(w_n'x + b_n)),

    where the gates sigma_n(t) in (0, 1) are a network of time with one hidden layer. A unit is the continuous limit of
    planar layers; its flow is invertible without a constraint.

    The field starts small for every M: u has standard deviation 0.1 / sqrt(M). It does not start at zero, since then
    w, b and the gates would have no gradient.

    Args:
        dim: number of elements of one sample of any shape.
        units: M.
        gate: width of the hidden layer of the gates.

    Raises:
        InputError: if a number is less than 1; by :meth:`forward`, for samples of another size, or a context.

    References:
        Chen, Rubanova, Bettencourt, Duvenaud 2018, arXiv 1806.07366, section 4.

    Example:
        >>> field = PlanarField(3, units=16)
        >>> field(torch.tensor(0.5), torch.randn(10, 3)).shape
        torch.Size([10, 3])
    """

    def __init__(self, dim: int, units: int = 64, gate: int = 8) -> None:
        super().__init__()
        if min(dim, units, gate) < 1:
            raise InputError(f"dim={dim}, units={units} and gate={gate} must be at least 1")
        self.dim = dim
        self.w = nn.Parameter(torch.randn(units, dim) / math.sqrt(dim))
        self.b = nn.Parameter(torch.randn(units))
        self.u = nn.Parameter(0.1 * torch.randn(units, dim) / math.sqrt(units))
        self.gates = nn.Sequential(nn.Linear(1, gate), nn.Tanh(), nn.Linear(gate, units), nn.Sigmoid())

    @override
    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        h, sigma = self._units(t, x, c)
        return ((sigma * h) @ self.u).view(x.shape)

    @override
    def velocity_and_divergence(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h, sigma = self._units(t, x, c)
        velocity = ((sigma * h) @ self.u).view(x.shape)
        return velocity, (sigma * (1 - h * h)) @ (self.u * self.w).sum(1)

    def _units(self, t: Tensor, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return tanh(w_n'x + b_n) (B, M), and the gates: (M,) in a solve, (B, M) with a time per sample."""
        check_context(c, 0, len(x))
        return torch.tanh(F.linear(flatten_samples(x, self.dim), self.w, self.b)), self.gates(
            t.to(x.dtype).unsqueeze(-1)
        )


def _slope(h: Tensor, slack: Tensor) -> Tensor:
    """Return 1 + s (1 - h^2) for s = slack - 1, without cancellation for a tiny slack."""
    return h * h + slack * (1 - h * h)


class _Root(torch.autograd.Function):
    """The root a (B,) of a + s tanh(a) = r (B,), s = slack - 1 > -1.

    By the implicit function theorem da = (dr - tanh(a) ds) / (1 + s (1 - tanh^2(a))). The rule is a function of a
    itself, so that higher derivatives are right as well.
    """

    @staticmethod
    def forward(r: Tensor, slack: Tensor) -> Tensor:
        # |a| is the root for |r|. There the left side is convex for s < 0 and concave for s > 0, and Newton's method
        # approaches the root from the side where it starts. A step in the other direction is rounding.
        size, s = r.abs(), slack - 1
        a = F.relu(size - s)
        for _ in range(NEWTON_STEPS):  # tens at worst, for a tiny slack and a tiny r
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
