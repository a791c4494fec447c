"""Planar flows: layers with one hidden unit each, and their continuous limit as a vector field."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from anode.fields import Field, check_context, flatten_samples
from anode.inputs import whole_number
from cnf.transforms import Transform, Transport


class Planar(Transform):
    r"""A chain of K planar layers f(z) = z + û tanh(w'z + b), from base to data only.

    A layer is invertible if w'û > -1, which holds for any parameters u, w, b with

        û = u + (m(w'u) - w'u) w / |w|^2,    m(x) = -1 + log(1 + e^x),    w'û = m(w'u),

    and log |det df/dz| = log(1 + w'û (1 - tanh^2(w'z + b))). The inverse has no closed form: such a flow has samples
    with log-densities, and is trained by :class:`cnf.ReverseKL`, but `log_prob` is not available.

    The layers start near the identity, with û small but not zero, since otherwise w and b would have no gradient, and
    with different w and b, so that they can learn different directions. û is undefined at w = 0: do not start there.

    Args:
        dim: number D of dimensions; samples are vectors without a context.
        layers: K.

    References:
        Rezende, Mohamed 2015, arXiv 1505.05770, section 4.1 and appendix A.1.

    Example:
        >>> from cnf import Flow, Normal
        >>> x, log_p = Flow(Planar(2, layers=8), Normal((2,))).rsample_and_log_prob(7)
        >>> x.shape, log_p.shape
        (torch.Size([7, 2]), torch.Size([7]))
    """

    def __init__(self, dim: int, layers: int = 1) -> None:
        super().__init__()
        self.dim = dim = whole_number("dim", dim)
        layers = whole_number("layers", layers)
        w = torch.randn(layers, dim) / math.sqrt(dim)
        no_move = math.log(math.e - 1) * w / w.square().sum(1, keepdim=True)  # m(w'u) = 0, hence û = 0
        self.w = nn.Parameter(w)
        self.u = nn.Parameter(no_move + 0.1 * torch.randn(layers, dim) / math.sqrt(dim))
        self.b = nn.Parameter(torch.randn(layers))

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        raise NotImplementedError("planar layers map base to data only: use rsample_and_log_prob, trained by ReverseKL")

    @override
    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        check_context(c, 0, len(z))
        x, log_det = flatten_samples(z, self.dim), z.new_zeros(len(z))
        along = (self.w * self.u).sum(1)
        slack = F.softplus(along)  # 1 + w'û
        push = (slack - 1 - along) / self.w.square().sum(1)
        for u, w, b, s in zip(self.u + push.unsqueeze(1) * self.w, self.w, self.b, slack, strict=True):
            h = torch.tanh(x @ w + b)
            x = x + torch.outer(h, u)
            log_det = log_det + (h * h + s * (1 - h * h)).log()  # 1 + w'û (1 - h^2), without cancellation
        return Transport(x.view(z.shape), log_det)

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

    References:
        Chen et al. 2018, arXiv 1806.07366, section 4.
    """

    def __init__(self, dim: int, units: int = 64, gate: int = 8) -> None:
        super().__init__()
        self.dim = dim = whole_number("dim", dim)
        units, gate = whole_number("units", units), whole_number("gate", gate)
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
        sigma = self.gates(t.to(x.dtype).unsqueeze(-1))
        return torch.tanh(F.linear(flatten_samples(x, self.dim), self.w, self.b)), sigma
