"""Linear layers of a state, a time and a context: what perceptrons as vector fields are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Map = tuple[Tensor, Tensor]  # weight (n_out, n_in) and shift, (n_out,) or one for each sample (B, n_out)


class Layer(nn.Module):
    """W h + b + v t + U c, initialised like one linear layer of the joined input (h, t, c).

    Subclasses let W and b depend on time. At the one time of a solve every layer is an affine map of h all the same,
    :meth:`at`, and they evaluate a time per sample without a weight per sample.

    Args:
        n_in: width of h.
        n_out: width of the result.
        context: number of context features; without any there is no U.
        timed: whether there is v.

    Example:
        >>> layer = SquashLayer(3, 16, context=2)
        >>> layer(torch.tensor(0.5), torch.randn(10, 3), torch.randn(10, 2)).shape
        torch.Size([10, 16])
    """

    def __init__(self, n_in: int, n_out: int, context: int, timed: bool = False) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_in + timed + context)
        self.weight = _uniform(bound, n_out, n_in)
        self.bias = _uniform(bound, n_out)
        self.time = _uniform(bound, n_out) if timed else None
        self.context = _uniform(bound, n_out, context) if context else None

    def forward(self, t: Tensor, h: Tensor, c: Tensor | None) -> Tensor:
        """The layer (B, n_out) of h (B, n_in) and c (B, C) at times t, () or (B,)."""
        return affine(h, *self.at(t, c))

    def at(self, t: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """The weight (n_out, n_in) and the shift, (n_out,) or (B, n_out), which make the layer an :func:`affine` map.

        Args:
            t: time, ``()``; also ``(B,)`` where the weight does not depend on it.
            c: context, (B, C), or None.
        """
        return self.weight, self._shift(self.bias, t, c)

    def _shift(self, bias: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        if self.time is not None:
            t = t.unsqueeze(-1) if t.ndim else t  # (B, 1) with a time per sample
            bias = torch.addcmul(bias, t, self.time)  # (H,) in a solve, (B, H) with a time per sample
        if self.context is not None and c is not None:
            bias = bias + F.linear(c, self.context)
        return bias


class SquashLayer(Layer):
    """(W h + b) * sigmoid(w_g t + b_g) + w_b t + U c: time gates and shifts what comes out ("concatsquash").

    References:
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud 2019, arXiv 1810.01367, its code.
    """

    def __init__(self, n_in: int, n_out: int, context: int) -> None:
        super().__init__(n_in, n_out, context)
        # Gate and shift begin like linear layers of the one input t, as published.
        self.time = _uniform(1, n_out)
        self.gate_time = _uniform(1, n_out)
        self.gate_bias = _uniform(1, n_out)

    def forward(self, t: Tensor, h: Tensor, c: Tensor | None) -> Tensor:
        """See :meth:`Layer.forward`."""
        if t.ndim == 0:
            return super().forward(t, h, c)  # the gate goes into the weight, which is smaller than the batch
        gate = self._gate(t.unsqueeze(-1))  # (B, H)
        return F.linear(h, self.weight) * gate + self._shift(self.bias * gate, t, c)

    def at(self, t: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """See :meth:`Layer.at`."""
        gate = self._gate(t)  # (H,)
        return self.weight * gate.unsqueeze(-1), self._shift(self.bias * gate, t, c)

    def _gate(self, t: Tensor) -> Tensor:
        return torch.sigmoid(torch.addcmul(self.gate_bias, t, self.gate_time))


class HyperLayer(Layer):
    """(W0 + t W1) h + b0 + t b1 + U c: weight and bias are one linear layer of t, the smallest hypernetwork."""

    def __init__(self, n_in: int, n_out: int, context: int) -> None:
        super().__init__(n_in, n_out, context)
        # W1 = 0 and b1 = 0 make a usual linear layer at every t. Hypernetworks of FFJORD's code begin with zero slopes
        # as well, but with W0 and b0 of standard deviation 0.01, near the zero field.
        self.time = nn.Parameter(torch.zeros(n_out))
        self.weight_time = nn.Parameter(torch.zeros(n_out, n_in))

    def forward(self, t: Tensor, h: Tensor, c: Tensor | None) -> Tensor:
        """See :meth:`Layer.forward`."""
        if t.ndim == 0:
            return super().forward(t, h, c)
        by_time = t.unsqueeze(-1) * F.linear(h, self.weight_time)
        return F.linear(h, self.weight) + by_time + self._shift(self.bias, t, c)

    def at(self, t: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """See :meth:`Layer.at`."""
        return torch.addcmul(self.weight, t, self.weight_time), self._shift(self.bias, t, c)


TIMED_WEIGHTS = {"squash": SquashLayer, "hyper": HyperLayer}


def affine(h: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    """W h + shift, of one shift (n_out,) for the batch or one for each sample (B, n_out)."""
    return F.linear(h, weight, shift) if shift.ndim == 1 else F.linear(h, weight) + shift


def _uniform(bound: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
