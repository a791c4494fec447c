"""Vector fields dx/dt = f(t, x, c): the interface, perceptrons with an exact divergence, and any network as a field."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from anode.errors import InputError, check_choice
from anode.inputs import whole_number
from anode.layers import MLP_TIMES, SquashLinear, TimedLinear, activations_of, affine, trace_matrix, widths_of
from anode.mlp_divergence import forward_with_divergence


class Field(nn.Module):
    """A vector field f(t, x, c) -> dx/dt of the same shape as x.

    Classifiers and densities integrate the same fields. A subclass implements :meth:`forward`, and
    :meth:`velocity_and_divergence` if it knows a faster rule than automatic differentiation.
    """

    @override
    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Evaluate the field.

        Args:
            t: time, ``()`` inside a solve or ``(B,)``.
            x: state, ``(B, *S)``.
            c: context, ``(B, C)``, or None for a field without context.

        Returns:
            The velocity dx/dt, ``(B, *S)``.
        """
        raise NotImplementedError

    def velocity_and_divergence(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """Return the velocity ``(B, *S)`` and the divergence tr(df/dx) ``(B,)``, or None without a closed form."""
        return None

    def velocity_and_jacobian(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """Return the velocity ``(B, *S)`` and the Jacobian df_i/dx_j ``(B, D, D)``, or None without a closed form."""
        return None

    @staticmethod
    def wrap(net: Callable[..., Tensor]) -> Field:
        """Make a field of any module or function ``f(t, x)``, ``f(x)`` or ``f(t, x, c)``.

        The required positional arguments of ``net`` decide which of the three it is; an optional third argument of
        ``f(t, x, c=None)`` gets the context if there is one. The parameters of a module, or of the module whose method
        is passed, become parameters of the field. Its divergence comes from automatic differentiation.

        Args:
            net: a module or function that returns the velocity, ``(B, *S)``; it gets t as in :meth:`forward`, in the
                dtype of x. A field remains itself, unless its ``forward`` does not take a context.

        Example:
            >>> field = Field.wrap(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)))
            >>> field(torch.tensor(0.5), torch.randn(10, 2)).shape
            torch.Size([10, 2])
            >>> Field.wrap(lambda t, x: -t * x)(torch.tensor(0.5), torch.ones(1, 2))
            tensor([[-0.5000, -0.5000]])
        """
        compiled: Any = getattr(net, "_orig_mod", net)  # torch.compile wraps a module
        return cast(Field, net) if isinstance(compiled, Field) and _takes_context(compiled) else _WrappedField(net)

    @override
    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the velocity and the divergence rule in place by ``torch.compile``, which takes the same arguments.

        The state dict does not change, and copies of the field use their own weights.
        """
        super().compile(*args, **kwargs)
        rule = torch.compile(type(self).velocity_and_divergence, *args, **kwargs)
        self.velocity_and_divergence = MethodType(rule, self)  # deepcopy binds a method to the copy of its object


class _WrappedField(Field):
    """A network as a field; see :meth:`Field.wrap`."""

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net
        self.owner = owner if isinstance(owner := getattr(net, "__self__", None), nn.Module) else None
        self.required, self.accepted = _count_arguments(net)

    @override
    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        if self.required == 3 or (self.required == 2 and self.accepted > 2 and c is not None):
            velocity = self.net(t.to(x.dtype), x, c)
        else:
            check_context(c, 0, len(x))
            velocity = self.net(x) if self.required == 1 else self.net(t.to(x.dtype), x)
        if not isinstance(velocity, Tensor):
            raise InputError(
                f"the field returns {type(velocity).__name__}: return the velocity dx/dt alone, a tensor shaped like x"
            )
        return velocity

    @override
    def velocity_and_divergence(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        net = getattr(self.net, "_orig_mod", self.net)
        if not isinstance(net, Field) or type(net).velocity_and_divergence is Field.velocity_and_divergence:
            return None
        check_context(c, 0, len(x))
        rule: Callable[..., tuple[Tensor, Tensor] | None] = net.velocity_and_divergence
        return rule(x) if self.required == 1 else rule(t.to(x.dtype), x)


def _takes_context(field: Field) -> bool:
    """Return True unless the ``forward`` of a field ends with x."""
    kinds = [parameter.kind for parameter in inspect.signature(field.forward).parameters.values()]
    return len(kinds) > 2 or any(
        kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD) for kind in kinds
    )


def _count_arguments(net: Any) -> tuple[int, int]:
    """Count the positional arguments that a network requires and those that it accepts."""
    net = getattr(net, "_orig_mod", net)  # torch.compile hides the signature of a module
    try:
        signature = inspect.signature(net.forward if isinstance(net, nn.Module) else net)
    except (TypeError, ValueError):
        raise InputError(f"net={net!r} does not have a readable signature: pass a module or lambda t, x: ...") from None
    named = [p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p for p in named if p.default is p.empty]
    positional = [p.name for p in named if p.kind != p.KEYWORD_ONLY]
    in_order = not {"t", "time"} & set(positional[1:]) and all(p.kind != p.KEYWORD_ONLY for p in required)
    if inspect.isclass(net) or not in_order or not 1 <= len(required) <= 3:
        raise InputError(f"net takes the arguments {signature}: pass f(t, x), f(x) or f(t, x, c)")
    return len(required), len(positional)


class MLPField(Field):
    r"""A multilayer perceptron as a vector field, with its exact divergence.

    With weights W1, W2, W3 at time t and activation slopes d1, d2 at the hidden units, the Jacobian of two hidden
    layers is W3 diag(d2) W2 diag(d1) W1, so that

        tr(df/dx) = d2' [W2 * (W1 W3)'] d1        (* elementwise),

    one matrix-vector product a sample in any dimension. One hidden layer has tr = d1' diag(W1 W2), none tr W1. Three
    and more carry D tangents through their layers; see :mod:`anode.mlp_divergence`.

    Args:
        dim: number of dimensions of one sample; samples of any shape with that many elements are flattened.
        hidden: widths of the hidden layers, or the width of one.
        activation: ``"tanh"``, ``"softplus"``, ``"relu"`` or ``"silu"`` of all hidden layers, or a name for each; the
            last name serves all layers that follow, and surplus names are ignored. ``("tanh", "silu")`` bounds the
            field far from the data, where ``"silu"`` alone grows without limit and throws outliers away.
        time: how each layer depends on time:

            - ``"none"``: W h + b.
            - ``"concat"``: W (h, t) + b in the first layer, W h + b in the others.
            - ``"bias"``: W h + b + v t.
            - ``"squash"``: (W h + b) * sigmoid(w_g t + b_g) + w_b t.
        context: number of context features c; U c is added in every layer, after the gate of ``"squash"``.
        zero_init: start from the zero field, so that the flow starts as the identity.

    References:
        Grathwohl et al. 2019, arXiv 1810.01367, its code (``"squash"``).

    Example:
        >>> field = MLPField(3, hidden=(16, 16))
        >>> field(torch.tensor(0.5), torch.randn(10, 3)).shape
        torch.Size([10, 3])
    """

    def __init__(
        self,
        dim: int,
        hidden: int | Sequence[int] = (128, 128),
        activation: str | Sequence[str] = "tanh",
        time: str = "bias",
        context: int = 0,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        check_choice("time", time, MLP_TIMES)
        hidden = widths_of("hidden", hidden)
        dim, context = whole_number("dim", dim), whole_number("context", context, 0)
        self.dim = dim
        self.time = time
        self.context = context
        self.activations = activations_of(activation, len(hidden))
        layers = nn.ModuleList()
        for i, (n_in, n_out) in enumerate(pairwise((dim, *hidden, dim))):
            timed = time == "bias" or (time == "concat" and i == 0)
            squash = time == "squash"
            layers.append(SquashLinear(n_in, n_out, context) if squash else TimedLinear(n_in, n_out, context, timed))
        self.layers: Sequence[TimedLinear] = layers  # ty: ignore[invalid-assignment]
        if zero_init:
            zero_(self.layers[-1])

    @override
    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        check_context(c, self.context, len(x))
        h, t = flatten_samples(x, self.dim), t.to(x.dtype)
        *first, last = self.layers
        for activation, layer in zip(self.activations, first, strict=True):
            h = activation.value(layer(t, h, c))
        return last(t, h, c).view(x.shape)

    @override
    def velocity_and_divergence(
        self, t: Tensor, x: Tensor, c: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Return f and its divergence, see :meth:`Field.velocity_and_divergence`.

        Args:
            t: time.
            x: samples.
            c: context.
            mask: m (D,) of ones and zeros, to take m * f(t, m * x, c) in place of f.
        """
        if t.ndim and self.time == "squash":
            return None  # the weights differ between samples
        check_context(c, self.context, len(x))
        h, t = flatten_samples(x, self.dim), t.to(x.dtype)
        if len(self.layers) > 3:
            maps = [layer.as_affine(t, c) for layer in self.layers]
            if mask is not None:
                maps[0], maps[-1] = (maps[0][0] * mask, maps[0][1]), _masked(maps[-1], mask)
            velocity, divergence = forward_with_divergence(h, maps, self.activations)
            return velocity.view(x.shape), divergence
        weights, slopes = [], []
        for i, layer in enumerate(self.layers):  # without comprehensions, whose frames would cost in every evaluation
            weight, shift = layer.as_affine(t, c)
            if mask is not None:
                weight = weight * mask if i == 0 else weight
                weight, shift = _masked((weight, shift), mask) if i == len(self.activations) else (weight, shift)
            weights.append(weight)
            h = affine(h, weight, shift)
            if i < len(self.activations):
                h, slope = self.activations[i].with_slope(h)
                slopes.append(slope)
        velocity = h.view(x.shape)
        if len(slopes) == 0:
            return velocity, weights[0].trace().expand(len(x))
        if len(slopes) == 1:
            return velocity, slopes[0] @ (weights[0] * weights[1].T).sum(1)
        return velocity, (F.linear(slopes[0], trace_matrix(*weights)) * slopes[1]).sum(1)

    @override
    def velocity_and_jacobian(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        if t.ndim and self.time == "squash":
            return None  # the weights differ between samples
        check_context(c, self.context, len(x))
        h, t = flatten_samples(x, self.dim), t.to(x.dtype)
        tangents = torch.eye(self.dim, dtype=h.dtype, device=h.device).unsqueeze(0)  # dh/dx_j, (1 or B, D, H)
        for i, layer in enumerate(self.layers):
            weight, shift = layer.as_affine(t, c)
            h, tangents = affine(h, weight, shift), tangents @ weight.T
            if i < len(self.activations):
                h, slope = self.activations[i].with_slope(h)
                tangents = slope.unsqueeze(1) * tangents
        return h.view(x.shape), tangents.mT.expand(len(x), -1, -1)


def _masked(map_: tuple[Tensor, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the affine map times the mask (D,) of its outputs."""
    weight, shift = map_
    return weight * mask.unsqueeze(1), shift * mask


def flatten_samples(x: Tensor, dim: int) -> Tensor:
    """Return the samples as vectors (B, dim); raise an :class:`InputError` if they have another number of elements."""
    if math.prod(x.shape[1:]) != dim:
        raise InputError(f"x of shape {tuple(x.shape)} does not fit a field of dim={dim}: pass (B, {dim})")
    return x.flatten(1)


def check_context(c: Tensor | None, features: int, batch: int) -> None:
    """Raise an :class:`InputError` unless ``c`` is ``(batch, features)``, or None if ``features`` is 0."""
    given = None if c is None else tuple(c.shape)
    wanted = (batch, features) if features else None
    if given != wanted:
        raise InputError(f"c of shape {given} does not fit a field with context={features}: pass {wanted}")


def zero_(layer: nn.Module) -> None:
    """Set all parameters of the last layer of a field to zero, which makes it the zero field."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
