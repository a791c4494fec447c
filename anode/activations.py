"""Activations that know their slope, for divergences in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anode.errors import InputError


class Activation(NamedTuple):
    """An elementwise function.

    Attributes:
        value: h(a).
        with_slope: h(a) and h'(a) together, sharing what they can.
    """

    value: Callable[[Tensor], Tensor]
    with_slope: Callable[[Tensor], tuple[Tensor, Tensor]]


def _tanh(a: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.tanh(a)
    return h, 1 - h * h


def _softplus(a: Tensor) -> tuple[Tensor, Tensor]:
    return F.softplus(a), torch.sigmoid(a)


def _relu(a: Tensor) -> tuple[Tensor, Tensor]:
    return F.relu(a), (a > 0).to(a.dtype)


def _silu(a: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(a)
    h = a * s
    return h, s + h * (1 - s)


_ACTIVATIONS = {
    "tanh": Activation(torch.tanh, _tanh),
    "softplus": Activation(F.softplus, _softplus),
    "relu": Activation(F.relu, _relu),
    "silu": Activation(F.silu, _silu),
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
