"""What the field of a flow makes of augmented dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from anode import Field, FrozenField, InputError, SecondOrderField
from cnf.networks import FIELDS, Network

BASES = ("normal", "mixture", "conditional")


def _joint(network: Network, shape: Sequence[int], context: int, extra: int) -> Field:
    return network(shape[0] + extra, context)


def _frozen(network: Network, shape: Sequence[int], context: int, extra: int) -> Field:
    return FrozenField(network(shape[0], context, extra), extra)


def _momentum(network: Network, shape: Sequence[int], context: int, extra: int) -> Field:
    return SecondOrderField(network(shape[0], math.prod(shape)))


def _categorical(network: Network, shape: Sequence[int], context: int, extra: int) -> Field:
    return network(shape[0], context + extra)


def _copies(network: Network, shape: Sequence[int], context: int, extra: int) -> Field:
    return network(shape[0], context)


MIXTURES = ("categorical", "copies")  # of as many flows as are extra
AUGMENTATIONS = {
    "joint": _joint,
    "frozen": _frozen,
    "momentum": _momentum,
    "categorical": _categorical,
    "copies": _copies,
}


def field_of(augmentation: str, network: Network, shape: Sequence[int], context: int, extra: int) -> Field:
    """The field of an augmentation.

    Args:
        augmentation: see :func:`cnf.density_model`.
        network: makes the part that learns.
        shape: shape S of one sample.
        context: number of context features.
        extra: number of augmented dimensions, channels or components; 0 for none.
    """
    return (AUGMENTATIONS[augmentation] if extra else _joint)(network, shape, context, extra)


def check(
    shape: Sequence[int],
    field: str,
    base: str,
    extra: int,
    augmentation: str,
    posterior: str,
    residual: bool,
    context: int,
) -> None:
    """Raise an :class:`~anode.InputError` for names that are unknown or choices that exclude each other."""
    names = {"field": (field, FIELDS), "base": (base, BASES), "augmentation": (augmentation, tuple(AUGMENTATIONS))}
    for name, (value, known) in names.items():
        if value not in known:
            raise InputError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}")
    if len(shape) not in (1, 3):
        raise InputError(f"shape={tuple(shape)} must be (D,) or, of images, (C, H, W)")
    if extra < 0 or (extra == 0 and augmentation != "joint"):
        raise InputError(
            f"extra={extra} must be from {int(augmentation != 'joint')} with augmentation={augmentation!r}"
        )
    if field != "mlp" and (len(shape) != 3 or residual):
        raise InputError(f"field={field!r} is for images (C, H, W), without residual; shape is {tuple(shape)}")
    if base == "conditional" and (not extra or augmentation in MIXTURES):
        raise InputError("base='conditional' depends on augmented dimensions: pass extra, and another augmentation")
    if posterior != "normal" and (not extra or (augmentation in MIXTURES) != (posterior == "fitted")):
        raise InputError(
            f"posterior={posterior!r} is of no use here: 'learned' is for augmented dimensions, 'fitted' for "
            "augmentation='categorical' or 'copies'"
        )
    if extra:
        _check_augmented(shape, field, base, extra, augmentation, context)


def _check_augmented(shape: Sequence[int], field: str, base: str, extra: int, augmentation: str, context: int) -> None:
    if augmentation in MIXTURES and base == "mixture":
        raise InputError(f"augmentation={augmentation!r} has a mixture of its own, of extra components: drop base")
    if augmentation == "frozen" and field != "mlp" and context:
        raise InputError("augmentation='frozen' takes the context of convolutions: drop context, or pass field='mlp'")
    if augmentation == "frozen" and field == "unet":
        raise InputError("augmentation='frozen' is for other fields than 'unet', whose context is no image")
    if augmentation == "momentum" and extra != shape[0]:
        raise InputError(f"extra={extra}: momentum needs as many as the data have, {shape[0]}")
    if augmentation == "momentum" and (field != "mlp" or context):
        raise InputError("augmentation='momentum' is for field='mlp', without context")
