"""Samples as people have them: arrays, data frames and lists become tensors, and values are checked."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anode.errors import InputError

UNIT_SCALE = (0.01, 30.0)  # mean magnitudes from which on inputs are far from unit scale


def to_tensor(name: str, x: Any, like: Tensor | None = None) -> Tensor:
    """Return samples as a tensor of real numbers; gradients flow through those that are tensors.

    Args:
        name: the argument, for messages.
        x: a tensor, a NumPy array, a data frame, or numbers in lists.
        like: a tensor whose dtype and device to take; those of x, and of its numbers, without it.

    Raises:
        InputError: if x does not hold real numbers.
    """
    kind = type(x).__name__
    if not isinstance(x, Tensor):
        try:
            array = np.asarray(x)
            if array.dtype.kind not in "biufO":
                raise TypeError(f"it holds {array.dtype}")
            plain = array.dtype in (np.float32, np.uint8)
            x = torch.tensor(array if plain else array.astype(np.float64))
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{name} of type {kind} does not hold numbers only ({error}): pass an array") from error
    if x.is_complex():
        raise InputError(f"{name} has dtype {x.dtype}: pass real numbers")
    return x if like is None else x.to(like.device, like.dtype)


def check_magnitude(name: str, x: Tensor, remedy: str) -> None:
    """Raise an :class:`InputError` unless x (B, *S) is finite, and warn if all its values are far from unit scale.

    The mean of |x| over the batch is compared for each element of a sample. Python shows the warning once.

    Args:
        name: the argument, for messages.
        x: what a network sees of its input.
        remedy: end of the warning.
    """
    if x.numel() == 0:
        return
    try:
        magnitude = x.abs().flatten(1).mean(0, dtype=torch.promote_types(x.dtype, torch.float32)).max().item()
    except RuntimeError:  # of torch.func.vmap and meta tensors, which do not show values
        return
    if not math.isfinite(magnitude):
        bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
        raise InputError(f"{name} is not finite in {bad} of {len(x)} samples: remove those")
    if magnitude > UNIT_SCALE[1] or 0 < magnitude < UNIT_SCALE[0]:
        warnings.warn(f"{name} is far from unit scale, so the network learns little of it: {remedy}", stacklevel=2)
