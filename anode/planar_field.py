"""The continuous limit of planar layers as a vector field."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anode.errors import InputError
from anode.fields import Field, check_context, flattened


class PlanarField(Field):
    r"""M gated planar units side by side, with their divergence in closed form.

        f(t, x) = sum_n sigma_n(t) u_n tanh(w_n'x + b_n),
        tr(df/dx) = sum_n sigma_n(t) (u_n'w_n) (1 - tanh^2(w_n'x + b_n)),

    where the gates sigma_n(t) in (0, 1) are a network of time with one hidden layer. A unit is the continuous limit of
    layers of the planar flow; unlike those, it needs no constraint to be invertible.

    The field starts small, whatever M: u has standard deviation 0.1 / sqrt(M). It does not start at zero, since then
    w, b and the gates would have no gradient.

    Args:
        dim: number of dimensions of one sample; samples of any shape with that many elements are flattened.
        units: M.
        gate: width of the hidden layer of the gates.

    Raises:
        InputError: when a number is less than 1.

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

    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Evaluate the field; see :meth:`Field.forward`.

        Raises:
            InputError: for samples of another size, or a context.
        """
        h, sigma = self._units(t, x, c)
        return ((sigma * h) @ self.u).view(x.shape)

    def velocity_and_divergence(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`Field.velocity_and_divergence`."""
        h, sigma = self._units(t, x, c)
        velocity = ((sigma * h) @ self.u).view(x.shape)
        return velocity, (sigma * (1 - h * h)) @ (self.u * self.w).sum(1)

    def _units(self, t: Tensor, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """tanh(w_n'x + b_n) (B, M), and the gates: (M,) in a solve, (B, M) with a time per sample."""
        check_context(c, 0, len(x))
        return torch.tanh(F.linear(flattened(x, self.dim), self.w, self.b)), self.gates(t.to(x.dtype).unsqueeze(-1))
