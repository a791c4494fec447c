"""Networks of vector fields by name, as densities are built of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from anode import ConvField, ConvStack, Field, InputError, MLPField, UNetField

FIELDS = ("mlp", "conv", "stack", "unet")
OF_ANY_SIZE = ("conv", "stack")  # of images


class Network(Protocol):
    """Makes the part of a field that learns."""

    def __call__(self, width: int, features: int, maps: int = 0) -> Field:
        """A field of so many dimensions or channels, with context features and context maps, which starts at zero."""
        ...


def network(
    field: str,
    hidden: Sequence[int],
    filters: int,
    activation: str | Sequence[str],
    time: str,
    residual: bool,
    pixels: int,
) -> Network:
    """What makes fields of a name, for images with so many pixels, or 1; see :func:`cnf.density_model`."""
    first = activation if isinstance(activation, str) else activation[0]

    def perceptron(width: int, features: int, maps: int = 0) -> Field:
        return MLPField(width * pixels, hidden, activation, time, features + maps * pixels, True, residual)

    def convolutions(width: int, features: int, maps: int = 0) -> Field:
        return ConvField(width, filters, first, time, features + maps, zero_init=True)

    def stack(width: int, features: int, maps: int = 0) -> Field:
        return ConvStack(width, hidden, first, time, features + maps, zero_init=True)

    def unet(width: int, features: int, maps: int = 0) -> Field:
        return UNetField(width, hidden, features, zero_init=True)

    made: dict[str, Callable[..., Field]] = dict(zip(FIELDS, (perceptron, convolutions, stack, unet), strict=True))
    return made[field]


def check_scales(field: str, blocks: int, multiscale: bool, base: str, extra: int, augmentation: str) -> None:
    """Raise an :class:`~anode.InputError` for several ODEs where there can be but one."""
    if blocks < 1:
        raise InputError(f"blocks={blocks} must be at least 1")
    if multiscale and field not in OF_ANY_SIZE:
        raise InputError(
            f"multiscale is for {' and '.join(OF_ANY_SIZE)}, which images of any size suit, not for field={field!r}: "
            "take one scale (--no-multiscale)"
        )
    if (multiscale or blocks > 1) and extra and augmentation != "joint":
        raise InputError(f"augmentation={augmentation!r} is of one ODE: drop multiscale and blocks")
    if multiscale and base == "conditional":
        raise InputError(
            "base='conditional' depends on channels that scales would mix: drop multiscale, or take another"
        )
