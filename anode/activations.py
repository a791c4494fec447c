"""Activations that know their slope, for divergences in closed form.

On a CPU, sigmoids are evaluated several times as fast as hyperbolic tangents and logarithms of 1 + x. Hence tanh and
softplus are made of them; their errors are a unit of rounding of 1, not of their own value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anode.errors import InputError

LINEAR = 40.0  # beyond this, softplus(a) is a
LINEAR_HALF = 10.0  # in float16, whose sigmoid(-a) vanishes from 17 on


class Activation(NamedTuple):
    """An elementwise function.

    Attributes:
        value: h(a).
        with_slope: h(a) and h'(a) together, sharing what they can.
        curvature: h''(a), from a, h(a) and h'(a).
    """

    value: Callable[[Tensor], Tensor]
    with_slope: Callable[[Tensor], tuple[Tensor, Tensor]]
    curvature: Callable[[Tensor, Tensor, Tensor], Tensor]


def _tanh(a: Tensor) -> Tensor:
    return 2 * torch.sigmoid(2 * a) - 1


def _tanh_with_slope(a: Tensor) -> tuple[Tensor, Tensor]:
    h = _tanh(a)
    return h, 1 - h * h


def _tanh_curvature(a: Tensor, h: Tensor, slope: Tensor) -> Tensor:
    return -2 * (h * slope)


def _softplus(a: Tensor) -> Tensor:
    linear = LINEAR_HALF if a.dtype == torch.float16 else LINEAR
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


_ACTIVATIONS = {
    "tanh": Activation(_tanh, _tanh_with_slope, _tanh_curvature),
    "softplus": Activation(_softplus, _softplus_with_slope, _softplus_curvature),
    "relu": Activation(F.relu, _relu_with_slope, _relu_curvature),
    "silu": Activation(F.silu, _silu_with_slope, _silu_curvature),
}


def activations(names: str | Sequence[str], layers: int) -> list[Activation]:
    """Those of so many hidden layers: the names in their order, the last for all that are left.

    Raises:
        InputError: for an unknown name, or none.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise InputError("activation=() names none: pass one, or one for every hidden layer")
    known = [activation(name) for name in names]
    return (known + known[-1:] * layers)[:layers]


def activation(name: str) -> Activation:
    """Look an activation up by name: ``tanh``, ``softplus``, ``relu`` or ``silu``.

    Raises:
        InputError: for another name.
    """
    if name not in _ACTIVATIONS:
        raise InputError(f"activation={name!r} is unknown; choose one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]
