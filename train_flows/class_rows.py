"""Images in rows of their classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
ROWS, COLUMNS = 10, 8  # at most


def labels(classes: int) -> Tensor:
    """The labels of as many samples as rows of the first classes take, in their order."""
    return torch.arange(min(ROWS, classes)).repeat_interleave(COLUMNS)


def in_rows(x: Array, y: Array, classes: Sequence[int]) -> Array:
    """The first images of each class in a row of its own, (R, N, C, H, W), and black ones where there are too few.

    Args:
        x: images (M, C, H, W).
        y: their classes (M,).
        classes: those of the R rows.
    """
    columns = max(1, min(COLUMNS, max(int((y == k).sum()) for k in classes)))
    rows = np.zeros((len(classes), columns, *x.shape[1:]), x.dtype)
    for row, k in zip(rows, classes, strict=True):
        found = x[y == k][:columns]
        row[: len(found)] = found
    return rows
