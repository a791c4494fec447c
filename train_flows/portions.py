"""Samples, and what they are given, in portions that fit into memory and chunks that are solved together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Protocol

from torch import Tensor

from cnf import Density
from cnf.density import NUMBERS
from cnf.objectives import Batch
from train_flows.precision import suited_batch

CHUNK = 2500  # samples solved together, at most


class Portions(Protocol):
    """Samples too many for memory: tensors (n, *S), one after the other, as often as they are asked for."""

    def __len__(self) -> int:
        """Number of all samples."""
        ...

    def __iter__(self) -> Iterator[Tensor]:
        """From the beginning."""
        ...


Samples = Batch | Portions
Given = tuple[Tensor, Tensor | None]  # samples and their contexts


def portions(model: Density, x: Samples) -> Iterator[Given]:
    """The samples as they come, suited to a model."""
    for portion in (x,) if isinstance(x, Tensor | tuple) else x:
        yield given(suited_batch(model, portion))


def given(batch: Batch) -> Given:
    """Samples and their contexts, the contexts None where there are none."""
    return (batch, None) if isinstance(batch, Tensor) else batch


def chunks(samples: Given) -> Iterator[Given]:
    """Samples and contexts that are solved together, one chunk after the other."""
    x, c = samples
    size = together(x.shape[1:])
    yield from zip(x.split(size), repeat(None) if c is None else c.split(size), strict=False)


def together(shape: Sequence[int], most: int = CHUNK) -> int:
    """How many samples of a shape are solved together: of a million numbers at most, and so many at most."""
    return max(1, min(most, NUMBERS // max(1, math.prod(shape))))
