"""Measure trained models: likelihood, accuracy and cost, each with its kind and tolerance.

Samples are solved together in chunks, on the device of the model, and shared out among processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from cnf import Density
from cnf.batches import split_batch
from train_flows.data import Split
from train_flows.run import distributed

Result = TypeVar("Result")
CHUNK_SAMPLES = 2500  # samples solved together, at most
CHUNK_NUMBERS = 2**20  # numbers in them, at most


def chunk_size(shape: Sequence[int]) -> int:
    """Return the number of samples of a shape that are solved together."""
    return max(1, min(CHUNK_SAMPLES, CHUNK_NUMBERS // max(1, math.prod(shape))))


def chunks(data: Split) -> list[slice]:
    """Return the rows of all chunks, in order."""
    size = chunk_size(data.x.shape[1:])
    return [slice(start, min(start + size, len(data))) for start in range(0, len(data), size)]


def in_chunks(
    model: nn.Module, data: Split, work: Callable[[Tensor, Any], Result], name: str, delay: float = 0.0
) -> list[Result]:
    """Return ``work(x, given)`` of all chunks in order, with contexts or targets, which are None without any.

    A progress bar shows the name of the work, if it takes longer than ``delay`` seconds.
    """
    parts = chunks(data)
    with distributed.progress_bar(name, len(parts), delay=delay) as bar:

        def counted(rows: slice) -> Result:
            done = work(*to_model(model, split_batch(data.batch(rows))))
            bar.update(distributed.count())
            return done

        return distributed.shared_out(parts, counted)


def to_model(model: nn.Module, x: Any) -> Any:
    """Move tensors to the device of a model and, unless they hold integers, to the dtype of its samples.

    Args:
        model: a module with parameters.
        x: a tensor, a tuple of them, or None, which stays None.
    """
    if isinstance(x, tuple):
        return tuple(to_model(model, part) for part in x)
    like = next(model.parameters())
    dtype = model.sample_dtype if isinstance(model, Density) else like.dtype
    return None if x is None else x.to(like.device, dtype if x.is_floating_point() else None)
