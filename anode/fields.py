"""Vector fields dx/dt = f(t, x, c), and the one place that broadcasts time and context over a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anode.activations import Activation, activations
from anode.errors import InputError
from anode.layers import TIMED_WEIGHTS, Layer, Map, affine
from anode.tangents import with_tangents

TIMES = ("none", "concat", "bias")  # of every kind of field; a perceptron has those of TIMED_WEIGHTS besides


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

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the field in place by :func:`torch.compile`: its velocity, and the rule of its divergence."""
        super().compile(*args, **kwargs)
        self.velocity_and_divergence = torch.compile(self.velocity_and_divergence, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was compiled, which is bound to the weights of this module: copies are not compiled."""
        return {name: value for name, value in super().__getstate__().items() if name != "velocity_and_divergence"}

    def diagonal(self, width: int) -> slice:
        """The part of dimension 1, of that width, that acts on its own rates.

        Elsewhere the diagonal of df/dx is zero, and a divergence by automatic differentiation need not look there.
        """
        return slice(width)


class MLPField(Field):
    r"""A multilayer perceptron as a vector field, with its exact divergence beside it.

    With weights W1, W2, W3 at time t and activation slopes d1, d2 at the hidden units, the Jacobian of two hidden
    layers is W3 diag(d2) W2 diag(d1) W1, so that

        tr(df/dx) = d2' [W2 * (W1 W3)'] d1        (* elementwise),

    one matrix-vector product a sample in any dimension. One hidden layer has tr = d1' diag(W1 W2), none tr W1. Three
    and more carry D tangents through their layers; see :mod:`anode.tangents`.

    Args:
        dim: number of dimensions of one sample; samples of any shape with that many elements are flattened.
        hidden: widths of the hidden layers.
        activation: ``"tanh"``, ``"softplus"``, ``"relu"`` or ``"silu"`` of all hidden layers, or a name for each, the
            last for all that follow; names beyond the layers have no part. ``("tanh", "silu")`` bounds the field far
            from the data, where ``"silu"`` alone grows without limit and throws outliers away.
        time: how each layer depends on time:

            - ``"none"``: W h + b.
            - ``"concat"``: W (h, t) + b in the first layer, W h + b in the others.
            - ``"bias"``: W h + b + v t.
            - ``"squash"``: (W h + b) * sigmoid(w_g t + b_g) + w_b t.
            - ``"hyper"``: W(t) h + b(t), where W(t) = W0 + t W1 and b(t) = b0 + t b1.
        context: number of context features c; U c is added in every layer, after the gate of ``"squash"``.
        zero_init: start from the zero field, so that the flow starts as the identity; with ``residual`` from f = -x.
        residual: subtract the state, f(t, x, c) = net(t, x, c) - x, whose divergence is less by ``dim``.

    Raises:
        InputError: for an unknown activation or time conditioning, or widths that are not positive.

    References:
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud 2019, arXiv 1810.01367, its code (``"squash"``, ``residual``).

    Example:
        >>> import torch
        >>> field = MLPField(3, hidden=(16, 16))
        >>> field(torch.tensor(0.5), torch.randn(10, 3)).shape
        torch.Size([10, 3])
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (128, 128),
        activation: str | Sequence[str] = "tanh",
        time: str = "bias",
        context: int = 0,
        zero_init: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        times = (*TIMES, *TIMED_WEIGHTS)
        if time not in times:
            raise InputError(f"time={time!r} is unknown; choose one of {', '.join(times)}")
        if min(dim, *hidden, 1) < 1 or context < 0:
            raise InputError(f"dim={dim}, hidden={tuple(hidden)} and context={context} must be positive numbers")
        self.dim = dim
        self.time = time
        self.context = context
        self.residual = residual
        self.activations = activations(activation, len(hidden))

        def make_layer(n_in: int, n_out: int, first: bool) -> Layer:
            if time in TIMED_WEIGHTS:
                return TIMED_WEIGHTS[time](n_in, n_out, context)
            return Layer(n_in, n_out, context, timed=time == "bias" or (time == "concat" and first))

        widths = (dim, *hidden, dim)
        self.layers = nn.ModuleList(make_layer(*pair, i == 0) for i, pair in enumerate(pairwise(widths)))
        if zero_init:
            for parameter in self.layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Evaluate the field; see :meth:`Field.forward`."""
        h, t = self._flat(x, c), t.to(x.dtype)
        *first, last = self.layers
        for activation, layer in zip(self.activations, first, strict=True):
            h = activation.value(layer(t, h, c))
        velocity = last(t, h, c).view(x.shape)
        return velocity - x if self.residual else velocity

    def velocity_and_divergence(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Field.velocity_and_divergence`; None for a time per sample where the weights depend on time."""
        if t.ndim and self.time in TIMED_WEIGHTS:
            return None
        h, t = self._flat(x, c), t.to(x.dtype)
        maps = [layer.at(t, c) for layer in cast("list[Layer]", self.layers)]
        rule = with_tangents if len(maps) > 3 else _in_closed_form
        velocity, divergence = rule(h, maps, self.activations)
        velocity = velocity.view(x.shape)
        return (velocity - x, divergence - self.dim) if self.residual else (velocity, divergence)

    def _flat(self, x: Tensor, c: Tensor | None) -> Tensor:
        check_context(c, self.context, len(x))
        return flattened(x, self.dim)


def _in_closed_form(h: Tensor, maps: Sequence[Map], activations: Sequence[Activation]) -> tuple[Tensor, Tensor]:
    """The velocity (B, D) and the divergence (B,) of up to two hidden layers of h (B, D)."""
    slopes, batch = [], len(h)
    *first, last = maps
    for activation, (weight, shift) in zip(activations, first, strict=True):
        h, slope = activation.with_slope(affine(h, weight, shift))
        slopes.append(slope)
    return affine(h, *last), _trace([weight for weight, _ in maps], slopes, batch)


def _trace(weights: list[Tensor], slopes: list[Tensor], batch: int) -> Tensor:
    """The traces (B,) of the Jacobians of layers of such weights, with such slopes (B, H) between them."""
    if len(slopes) == 0:
        return weights[0].trace().expand(batch)
    if len(slopes) == 1:
        return slopes[0] @ (weights[0] * weights[1].T).sum(1)
    return (F.linear(slopes[0], mixing_of(weights)) * slopes[1]).sum(1)


def mixing_of(weights: Sequence[Tensor]) -> Tensor:
    """W2 * (W1 W3)', (H2, H1), with which two hidden layers have the divergence d2' [...] d1."""
    first, second, last = weights
    return second * (first @ last).T


def flattened(x: Tensor, dim: int) -> Tensor:
    """The samples as vectors (B, dim), or an :class:`InputError` where they are not of so many elements."""
    if math.prod(x.shape[1:]) != dim:
        raise InputError(f"x of shape {tuple(x.shape)} does not fit a field of dim={dim}: pass (B, {dim})")
    return x.flatten(1)


def check_context(c: Tensor | None, features: int, batch: int) -> None:
    """Raise an :class:`InputError` unless ``c`` is what a field of so many context features needs for the batch."""
    got = None if c is None else tuple(c.shape)
    wanted = (batch, features) if features else None
    if got != wanted:
        raise InputError(f"c of shape {got} does not fit a field with context={features}: pass {wanted}")
