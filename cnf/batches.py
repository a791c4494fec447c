"""Batches of samples with contexts: as data loaders give them, repeated, weighted, and in what units."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from anode.errors import InputError
from anode.inputs import to_tensor
from anode.units import MeanScale, has_unit_scale, magnitude

Batch = Any  # samples x (B, *S), or a list or tuple (x,) or (x, c) with contexts (B, C)

MAX_POINTS, MAX_NUMBERS = 2**14, 2**20  # of one solve, if a density needs many points for each sample


def split_batch(batch: Batch, c: Any = None) -> tuple[Tensor, Tensor | None]:
    """Split a batch, which must not be empty, into samples and contexts; the contexts are None if it has none.

    A tuple, or a list of arrays as a ``DataLoader`` of a ``TensorDataset`` gives it, holds x, or x and c. Contexts can
    be a second argument instead.
    """
    is_list = isinstance(batch, list) and len(batch) <= 2 and all(hasattr(part, "shape") for part in batch)
    parts = batch if isinstance(batch, tuple) or is_list else (batch,)
    if not 1 <= len(parts) <= 2 or (len(parts) == 2 and c is not None):
        raise InputError(f"the batch has {len(parts)} parts{' and c' * (c is not None)}: pass x, (x,) or (x, c)")
    x, c = to_tensor("x", parts[0]), parts[1] if len(parts) == 2 else c
    if x.ndim and len(x) == 0:
        raise InputError("the batch is empty: pass at least one sample")
    return x, None if c is None else to_tensor("c", c)


def check_contexts(c: Tensor | None, n: int, features: int | None) -> None:
    """Raise an :class:`anode.InputError` unless contexts fit n samples.

    They are (n, C) for C features, None for 0 features, and either if the number of features is None.
    """
    size = None if c is None else tuple(c.shape)
    wanted = "(B, C)" if features is None else (n, features) if features else None
    if size == wanted or (features is None and (c is None or (c.ndim == 2 and len(c) == n))):
        return
    if c is None:
        raise InputError(f"c is missing, the context of the density: pass it in shape {wanted}")
    remedy = f"pass {wanted}" if wanted else "omit it, the density does not take a context"
    raise InputError(f"c of shape {size} does not fit {n} samples: {remedy}")


def max_copies(x: Tensor) -> int:
    """Return the number of copies of samples to solve together: at most 16,384 points of a million numbers in all.

    It bounds memory without gradients only: with them, all graphs stay.
    """
    return max(1, min(MAX_POINTS // max(1, len(x)), MAX_NUMBERS // max(1, x.numel())))


def repeat_samples(k: int, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Repeat samples (B, *S) and their contexts k times, (k B, ...)."""
    if k == 1:
        return x, c
    return x.repeat(k, *[1] * (x.ndim - 1)), None if c is None else c.repeat(k, 1)


def weighted_mean(values: Tensor, weights: Any) -> Tensor:
    """Return sum_i w_i v_i / sum_i w_i of values (B,), with equal weights if they are None."""
    if weights is None:
        return values.mean()
    weights = to_tensor("weights", weights).to(values)
    if weights.shape != values.shape:
        raise InputError(f"weights of shape {tuple(weights.shape)} do not fit {len(values)} samples: pass (B,)")
    return (weights * values).sum() / weights.sum()


def warn_of_units(c: Tensor, scale: MeanScale | None) -> None:
    """Warn of contexts (B, C) far from unit scale, unless a fitted layer has standardised them."""
    if len(c) and not (scale is not None and scale.fitted) and not has_unit_scale(magnitude(c.detach())):
        warnings.warn(
            "contexts are far from unit scale, where a model learns little from them: standardise them, for example by "
            "density_model(shape, data=x, context_data=c)",
            stacklevel=6,  # the caller of log_prob
        )
