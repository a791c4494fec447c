"""Arguments as people have them: arrays, data frames and lists of numbers, counts, and shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anode.errors import InputError


def to_tensor(name: str, values: Any, like: Tensor | None = None) -> Tensor:
    """Return real numbers as a tensor; a tensor stays itself, with its gradient.

    Args:
        name: name of the argument, for messages.
        values: a tensor, an array, a data frame, a list of tensors, or nested lists of numbers.
        like: a tensor whose dtype and device other values get; float64 on the CPU without it.
    """
    try:
        if isinstance(values, Tensor):
            tensor = values
        elif isinstance(values, list | tuple) and values and all(isinstance(value, Tensor) for value in values):
            tensor = torch.stack(tuple(values))
        else:
            array = np.asarray(values)
            if values is None or array.dtype.kind not in "biufO":
                raise TypeError(f"it holds {'text' if array.dtype.kind in 'US' else array.dtype}")
            tensor = torch.from_numpy(np.array(array, dtype=np.float64, order="C"))
    except (TypeError, ValueError, RuntimeError) as error:  # text, ragged lists, missing values
        kind = type(values).__name__
        raise InputError(f"{name} of type {kind} cannot become a tensor ({error}): pass real numbers") from error
    if tensor.is_complex():
        raise InputError(f"{name} holds complex numbers: pass real and imaginary parts as dimensions")
    return tensor if like is None or tensor is values else tensor.to(like)


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number of at least ``least``: an int, a float such as 1e3, or a sequence of one such number."""
    number = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    whole = isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number) and number % 1 == 0
    if not whole or number < least:
        shown = f" of type {type(value).__name__}" if hasattr(value, "shape") else f"={value!r}"
        raise InputError(f"{name}{shown} must be a whole number of at least {least}")
    return int(number)


def to_shape(shape: Any) -> tuple[int, ...]:
    """Return the shape S of one sample; a number D stands for (D,)."""
    if isinstance(shape, Sequence) and not isinstance(shape, str) and len(shape):
        return tuple(whole_number("shape", side) for side in shape)
    if not isinstance(shape, Real):
        raise InputError(f"shape of type {type(shape).__name__} must be D, (D,) or (C, H, W), the shape of one sample")
    return (whole_number("shape", shape),)


def check_shape(shape: Any) -> tuple[int, ...]:
    """Return the shape S of a vector or an image; see :func:`to_shape`."""
    sides = to_shape(shape)
    if len(sides) not in (1, 3):
        raise InputError(f"shape={sides} must be (D,) for vectors or (C, H, W) for images")
    return sides


def check_batch(name: str, x: Tensor, shape: Sequence[int], model: str) -> None:
    """Raise an :class:`InputError` unless x is a batch (B, *S) for a kind of model."""
    if x.ndim == 0 or x.shape[1:] != torch.Size(shape):
        size = ", ".join(map(str, ("B", *shape)))
        raise InputError(f"{name} of shape {tuple(x.shape)} does not fit the {model}: pass ({size})")


def check_finite(name: str, values: Tensor) -> None:
    """Raise an :class:`InputError` unless all values of samples (B, ...) are finite; waits for the device."""
    if not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values)).reshape(len(values), -1).any(1).sum())
        raise InputError(f"{name} is not finite in {bad} of {len(values)} samples: remove those")
