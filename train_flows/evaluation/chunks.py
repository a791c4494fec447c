"""Samples in chunks that are solved together, on the device of a model, shared out among processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from train_flows.data import Split
from train_flows.run import distributed

Samples = Tensor | tuple[Tensor, Tensor] | Split  # x (N, *S), x with contexts or targets, or a part of a data set
Result = TypeVar("Result")
CHUNK_SAMPLES = 2500  # samples solved together, at most
CHUNK_NUMBERS = 2**20  # numbers in them, at most


def chunk_size(shape: Sequence[int]) -> int:
    """Return the number of samples of a shape that are solved together."""
    return max(1, min(CHUNK_SAMPLES, CHUNK_NUMBERS // max(1, math.prod(shape))))


def chunks(data: Samples) -> list[slice]:
    """Return the rows of all chunks, in order."""
    count = number_of(data)
    size = chunk_size(rows_of(data, slice(1))[0].shape[1:])
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def in_chunks(model: nn.Module, data: Samples, work: Callable[[Tensor, Any], Result]) -> list[Result]:
    """Return ``work(x, c)`` of all chunks in order.

    Args:
        model: its device and dtype are those of x and c.
        data: what to read the chunks from; those of a memory-mapped part are read one after the other.
        work: a function of samples and contexts (or targets), which are None without any.
    """
    return distributed.shared_out(chunks(data), lambda rows: work(*to_model(model, rows_of(data, rows))))


def to_model(model: nn.Module, x: Any) -> Any:
    """Move tensors to the device of a model and, unless they hold integers, to its dtype.

    Args:
        model: a module with parameters.
        x: a tensor, a tuple of them, or None, which stays None.
    """
    if isinstance(x, tuple):
        return tuple(to_model(model, part) for part in x)
    like = next(model.parameters())
    return None if x is None else x.to(like.device, like.dtype if x.is_floating_point() else None)


def number_of(data: Samples) -> int:
    """Return the number of samples."""
    return len(data[0]) if isinstance(data, tuple) else len(data)


def rows_of(data: Samples, rows: slice) -> tuple[Tensor, Tensor | None]:
    """Return samples of some rows, and their contexts or targets, None without any."""
    if isinstance(data, Tensor):
        return data[rows], None
    batch = (data[0][rows], data[1][rows]) if isinstance(data, tuple) else data.batch(rows)
    return batch if isinstance(batch, tuple) else (batch, None)
