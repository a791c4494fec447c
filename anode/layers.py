"""Layers of vector fields: linear maps and convolutions of state, time and context, and activations with slopes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BeforeValidator, Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from anode.errors import InputError, check_choice

ActivationName = Literal["tanh", "softplus", "relu", "silu"]
Widths = Annotated[  # of hidden layers, or the width of one
    tuple[PositiveInt, ...],
    Field(max_length=100),
    BeforeValidator(lambda widths: (widths,) if isinstance(widths, int) else widths),
]
Blocks = Annotated[int, Field(ge=1, le=1000)]
Affine = tuple[Tensor, Tensor]  # weight (n_out, n_in) and shift, (n_out,) or one for each sample (B, n_out)

CONV_TIMES = ("none", "concat", "bias")
MLP_TIMES = (*CONV_TIMES, "squash")
LINEAR_FROM = 40.0  # softplus(a) = a beyond this
LINEAR_FROM_HALF = 10.0  # in float16, where sigmoid(-a) underflows from a = 17


class TimedLinear(nn.Module):
    """W h + b + v t + U c, initialised like one linear layer of the joined input (h, t, c).

    Args:
        n_in: width of h.
        n_out: width of the result.
        context: number of context features; U exists only if it is positive.
        timed: add v t.
    """

    def __init__(self, n_in: int, n_out: int, context: int, timed: bool = False) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_in + timed + context)
        self.weight = _uniform(bound, n_out, n_in)
        self.bias = _uniform(bound, n_out)
        self.time = _uniform(bound, n_out) if timed else None
        self.context = _uniform(bound, n_out, context) if context else None

    @override
    def forward(self, t: Tensor, h: Tensor, c: Tensor | None) -> Tensor:
        return affine(h, *self.as_affine(t, c))

    def as_affine(self, t: Tensor, c: Tensor | None) -> Affine:
        """Return the weight (n_out, n_in) and the shift, (n_out,) or (B, n_out), of this layer as a map of h.

        Args:
            t: time, ``()``; or ``(B,)`` if the weight does not depend on it.
            c: context, (B, C), or None.
        """
        shift: Tensor = self.bias
        if self.time is not None:
            shift = torch.addcmul(shift, t.unsqueeze(-1) if t.ndim else t, self.time)
        if self.context is not None and c is not None:
            shift = shift + F.linear(c, self.context)
        return self.weight, shift


class SquashLinear(TimedLinear):
    """(W h + b) * sigmoid(w_g t + b_g) + w_b t + U c: time gates and shifts the output ("concatsquash").

    References:
        Grathwohl et al. 2019, arXiv 1810.01367, its code.
    """

    def __init__(self, n_in: int, n_out: int, context: int) -> None:
        super().__init__(n_in, n_out, context)
        # Gate and shift begin like linear layers of the one input t, as published.
        self.time = _uniform(1, n_out)
        self.gate_time = _uniform(1, n_out)
        self.gate_bias = _uniform(1, n_out)

    @override
    def forward(self, t: Tensor, h: Tensor, c: Tensor | None) -> Tensor:
        if t.ndim == 0:
            return super().forward(t, h, c)  # the gate multiplies the weight, which is smaller than the batch
        gate, shift = self._gate_and_shift(t.unsqueeze(-1), c)  # (B, H)
        return F.linear(h, self.weight) * gate + shift

    @override
    def as_affine(self, t: Tensor, c: Tensor | None) -> Affine:
        gate, shift = self._gate_and_shift(t, c)  # (H,)
        return self.weight * gate.unsqueeze(-1), shift

    def _gate_and_shift(self, t: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self.time is not None
        gate = torch.sigmoid(torch.addcmul(self.gate_bias, t, self.gate_time))
        shift = torch.addcmul(self.bias * gate, t, self.time)
        return gate, shift if self.context is None or c is None else shift + F.linear(c, self.context)


class TimedConv(nn.Module):
    """A convolution W * h + b + U c plus a term in time t: v t (``"bias"``), or an input channel of the constant t.

    Args:
        n_in: input channels.
        n_out: output channels.
        size: odd side length of the kernel; zero padding keeps the size of the image.
        time: ``"none"``, ``"concat"`` or ``"bias"``.
        context: number of context features; U exists only if it is positive.
    """

    def __init__(self, n_in: int, n_out: int, size: int, time: str, context: int = 0) -> None:
        super().__init__()
        check_choice("time", time, CONV_TIMES)
        self.padding = size // 2
        bound = 1 / math.sqrt(n_in * size**2 + {"none": 0, "bias": 1, "concat": size**2}[time] + context)
        # Channels-last weights give channels-last results: 1.5 times as fast on a CPU, and the layout of tensor cores.
        self.weight = _uniform(bound, n_out, n_in, size, size, memory_format=torch.channels_last)
        self.bias = _uniform(bound, n_out)
        self.register_parameter("time", None)
        if time != "none":
            self.time = _uniform(bound, n_out) if time == "bias" else _uniform(bound, n_out, 1, size, size)
        self.context = _uniform(bound, n_out, context) if context else None

    @property
    def centre_tap(self) -> Tensor:
        """The matrix (n_out, n_in) by which a pixel of the input acts on the same pixel of the output."""
        return self.weight[:, :, self.padding, self.padding]

    @override
    def forward(self, t: Tensor, h: Tensor, c: Tensor | None = None) -> Tensor:
        shift, time_map = self.bias, None
        if self.time is not None and self.time.ndim == 1:
            shift = torch.addcmul(shift, t.unsqueeze(-1) if t.ndim else t, self.time)
        elif self.time is not None:  # the channel of t is t times a channel of ones, convolved once for all samples
            time_map = F.conv2d(h.new_ones(1, 1, *h.shape[2:]), self.time, padding=self.padding)
        if self.context is not None and c is not None:
            shift = shift + F.linear(c, self.context)
        if shift.ndim == 1:
            y = F.conv2d(h, self.weight, shift, padding=self.padding)
        else:
            y = F.conv2d(h, self.weight, padding=self.padding) + shift[..., None, None]
        return y if time_map is None else y + t.view(-1, 1, 1, 1) * time_map


def affine(h: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    """Return W h + shift for one shift (n_out,), or one for each sample (B, n_out)."""
    return F.linear(h, weight, shift) if shift.ndim == 1 else F.linear(h, weight) + shift


def trace_matrix(first: Tensor, second: Tensor, last: Tensor) -> Tensor:
    """Return W2 * (W1 W3)', (H2, H1), which gives two hidden layers the divergence d2' [W2 * (W1 W3)'] d1."""
    return second * (first @ last).T


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group normalisation with gcd(32, channels) groups."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def _uniform(bound: float, *shape: int, memory_format: torch.memory_format = torch.contiguous_format) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound).contiguous(memory_format=memory_format))


class Activation(NamedTuple):
    """An elementwise function with its derivatives.

    Attributes:
        value: h(a).
        with_slope: h(a) and h'(a), which share work.
        curvature: h''(a), from a, h(a) and h'(a).
    """

    value: Callable[[Tensor], Tensor]
    with_slope: Callable[[Tensor], tuple[Tensor, Tensor]]
    curvature: Callable[[Tensor, Tensor, Tensor], Tensor]


# On a CPU, a sigmoid is several times as fast as tanh and log1p. Tanh and softplus are therefore written in terms of
# it; their errors are one rounding unit of 1, not of the value.
def _tanh(a: Tensor) -> Tensor:
    return (2 * (2 * a).sigmoid_()).sub_(1)  # in place where autograd keeps no copy: new memory costs as much as a pass


def _tanh_with_slope(a: Tensor) -> tuple[Tensor, Tensor]:
    h = (2 * (2 * a).sigmoid_()).sub_(1)
    return h, (h * h).neg_().add_(1)


def _tanh_curvature(a: Tensor, h: Tensor, slope: Tensor) -> Tensor:
    return -2 * (h * slope)


def _softplus(a: Tensor) -> Tensor:
    linear = LINEAR_FROM_HALF if a.dtype == torch.float16 else LINEAR_FROM
    return torch.where(a > linear, a, -torch.log(torch.sigmoid(-a.clamp(max=linear))))


def _softplus_with_slope(a: Tensor) -> tuple[Tensor, Tensor]:
    return _softplus(a), torch.sigmoid(a)


def _softplus_curvature(a: Tensor, h: Tensor, slope: Tensor) -> Tensor:
    return slope - slope * slope


def _relu_with_slope(a: Tensor) -> tuple[Tensor, Tensor]:
    return F.relu(a), (a > 0).to(a.dtype)


def _relu_curvature(a: Tensor, h: Tensor, slope: Tensor) -> Tensor:
    return torch.zeros_like(a)


def _silu_with_slope(a: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(a)
    h = a * s
    return h, s + h * (1 - s)


def _silu_curvature(a: Tensor, h: Tensor, slope: Tensor) -> Tensor:
    s = torch.sigmoid(a)
    return s * (1 - s) * (2 + a * (1 - 2 * s))


ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(_tanh, _tanh_with_slope, _tanh_curvature),
    "softplus": Activation(_softplus, _softplus_with_slope, _softplus_curvature),
    "relu": Activation(F.relu, _relu_with_slope, _relu_curvature),
    "silu": Activation(F.silu, _silu_with_slope, _silu_curvature),
}


def activation_named(name: str) -> Activation:
    """Look up an activation by its name."""
    check_choice("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def activations_of(names: str | Sequence[str], n_layers: int) -> list[Activation]:
    """Return one activation for each of ``n_layers`` layers; the last name serves all layers that follow."""
    each: Any = names if isinstance(names, list | tuple) else [names]
    found = [activation_named(name) for name in each]
    if not found:
        raise InputError("activation=() is empty: pass a name, or one for every hidden layer")
    return (found + found[-1:] * n_layers)[:n_layers]


def widths_of(name: str, widths: int | Sequence[int]) -> tuple[int, ...]:
    """Return the widths of hidden layers; one number is the width of one layer."""
    values: Any = (widths,) if isinstance(widths, Integral) else widths
    if not isinstance(values, Sequence) or not all(isinstance(value, Integral) and value > 0 for value in values):
        raise InputError(f"{name}={widths!r} must be positive whole numbers, such as 64 or (64, 64)")
    return tuple(map(int, values))


def stem(kind: str, channels: int, filters: int) -> nn.Sequential:
    """Build the stem of an ODE-Net: from images (B, channels, H, W) to maps (B, filters, about H / 4, about W / 4)."""
    first = nn.Conv2d(channels, filters, 3)
    if kind == "residual":
        return nn.Sequential(first, Downsample(filters), Downsample(filters))
    halves = [nn.Conv2d(filters, filters, 4, stride=2, padding=1) for _ in range(2)]
    return nn.Sequential(first, group_norm(filters), nn.ReLU(), halves[0], group_norm(filters), nn.ReLU(), halves[1])


class Downsample(nn.Module):
    """A residual block that halves a map: skip(h) + conv(relu(norm(conv(h)))) with h = relu(norm(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(group_norm(channels) for _ in range(2))
        self.skip = nn.Conv2d(channels, channels, 1, stride=2, bias=False)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False) for stride in (2, 1)
        )

    @override
    def forward(self, x: Tensor) -> Tensor:
        inner, outer = self.convs
        h = torch.relu(self.norms[0](x))
        return self.skip(h) + outer(torch.relu(self.norms[1](inner(h))))
