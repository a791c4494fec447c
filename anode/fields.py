"""Vector fields dx/dt = f(t, x, c), and the one place that broadcasts time and context over a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anode.activations import activation as find_activation
from anode.errors import InputError

TIMES = ("none", "concat", "bias")


class Field(nn.Module):
    """A vector field f(t, x, c) -> dx/dt of the same shape as x.

    Classifiers and densities integrate the same fields. Subclasses implement :meth:`forward`, and state
    :meth:`velocity_and_divergence` where they know a faster rule than automatic differentiation.
    """

    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Evaluate the field.

        Args:
            t: time, ``()`` inside a solve or ``(B,)``.
            x: state, ``(B, *S)``.
            c: context, ``(B, C)``, or None for a field without.

        Returns:
            The velocity dx/dt, ``(B, *S)``.
        """
        raise NotImplementedError

    def velocity_and_divergence(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """The velocity ``(B, *S)`` and its divergence tr(df/dx) ``(B,)`` in closed form, or None if there is none."""
        return None


class MLPField(Field):
    r"""A multilayer perceptron as a vector field, with its divergence in closed form up to two hidden layers.

    With weights W1, W2, W3 and activation slopes d1, d2 at the hidden units, the Jacobian of two hidden layers is
    W3 diag(d2) W2 diag(d1) W1, so that

        tr(df/dx) = d2' [W2 * (W1 W3)'] d1        (* elementwise),

    one matrix-vector product a sample in any dimension. One hidden layer has tr = d1' diag(W1 W2), none tr W1.

    Args:
        dim: number of dimensions of one sample; samples of any shape with that many elements are flattened.
        hidden: widths of the hidden layers.
        activation: ``"tanh"``, ``"softplus"``, ``"relu"`` or ``"silu"``.
        time: how the field depends on time: ``"none"``, ``"concat"`` (an input of the first layer) or ``"bias"``
            (a learned multiple of t is added in every layer).
        context: number of context features; they are added, by a learned linear map, in every layer.
        zero_init: start from the zero field, so that the flow starts as the identity.

    Raises:
        InputError: for an unknown activation or time conditioning, or widths that are not positive.

    Example:
        >>> field = MLPField(3, hidden=(16, 16))
        >>> field(torch.tensor(0.5), torch.randn(10, 3)).shape
        torch.Size([10, 3])
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (128, 128),
        activation: str = "tanh",
        time: str = "bias",
        context: int = 0,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        if time not in TIMES:
            raise InputError(f"time={time!r} is unknown; choose one of {', '.join(TIMES)}")
        if min(dim, *hidden, 1) < 1 or context < 0:
            raise InputError(f"dim={dim}, hidden={tuple(hidden)} and context={context} must be positive numbers")
        self.dim = dim
        self.time = time
        self.context = context
        self.activation = find_activation(activation)
        widths = (dim, *hidden, dim)
        self.layers = nn.ModuleList(
            _Layer(n_in, n_out, timed=time == "bias" or (time == "concat" and i == 0), context=context)
            for i, (n_in, n_out) in enumerate(pairwise(widths))
        )
        if zero_init:
            for parameter in self.layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Evaluate the field; see :meth:`Field.forward`."""
        h, t = self._flat(x, c), t.to(x.dtype)
        *first, last = self.layers
        for layer in first:
            h = self.activation.value(layer(t, h, c))
        return last(t, h, c).view(x.shape)

    def velocity_and_divergence(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Field.velocity_and_divergence`; None for three hidden layers or more."""
        if len(self.layers) > 3:
            return None
        h, t = self._flat(x, c), t.to(x.dtype)
        slopes = []
        *first, last = self.layers
        for layer in first:
            h, slope = self.activation.with_slope(layer(t, h, c))
            slopes.append(slope)
        return last(t, h, c).view(x.shape), self._trace(slopes, h)

    def _trace(self, slopes: list[Tensor], like: Tensor) -> Tensor:
        weights = [layer.weight for layer in cast("list[_Layer]", self.layers)]
        if len(slopes) == 0:
            return weights[0].trace().expand(len(like))
        if len(slopes) == 1:
            return slopes[0] @ (weights[0] * weights[1].T).sum(1)
        mixing = weights[1] * (weights[0] @ weights[2]).T  # (H2, H1)
        return (F.linear(slopes[0], mixing) * slopes[1]).sum(1)

    def _flat(self, x: Tensor, c: Tensor | None) -> Tensor:
        if math.prod(x.shape[1:]) != self.dim:
            raise InputError(
                f"x of shape {tuple(x.shape)} does not fit a field of dim={self.dim}: pass (B, {self.dim})"
            )
        check_context(c, self.context, len(x))
        return x.flatten(1)


class _Layer(nn.Module):
    """W h + b + v t + U c, initialised like one linear layer of the joined input (h, t, c)."""

    def __init__(self, n_in: int, n_out: int, timed: bool, context: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_in + timed + context)

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.weight = uniform(n_out, n_in)
        self.bias = uniform(n_out)
        self.time = uniform(n_out) if timed else None
        self.context = uniform(n_out, context) if context else None

    def forward(self, t: Tensor, h: Tensor, c: Tensor | None) -> Tensor:
        shift = self.bias
        if self.time is not None:
            t = t.unsqueeze(-1) if t.ndim else t  # (B, 1) with a time per sample
            shift = torch.addcmul(shift, t, self.time)  # (H,) in a solve, (B, H) with a time per sample
        if self.context is not None and c is not None:
            shift = shift + F.linear(c, self.context)
        return F.linear(h, self.weight, shift) if shift.ndim == 1 else F.linear(h, self.weight) + shift


def check_context(c: Tensor | None, features: int, batch: int) -> None:
    """Raise an :class:`InputError` unless ``c`` is what a field of so many context features needs for the batch."""
    got = None if c is None else tuple(c.shape)
    wanted = (batch, features) if features else None
    if got != wanted:
        raise InputError(f"c of shape {got} does not fit a field with context={features}: pass {wanted}")
