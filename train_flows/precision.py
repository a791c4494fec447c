"""Samples in the precision of a model, and its layers in half of it, while what is summed up keeps all bits."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cnf.objectives import Batch
from train_flows.training import Precision


def suited(model: nn.Module, x: Tensor) -> Tensor:
    """Samples where a model is, and, unless they are whole numbers, in its precision."""
    like = next(model.parameters())
    return x.to(like.device, like.dtype if x.is_floating_point() else None)


def suited_batch(model: nn.Module, batch: Batch) -> Batch:
    """Samples x, or the pair (x, c) of samples and contexts, where a model is, and in its precision."""
    return suited(model, batch) if isinstance(batch, Tensor) else (suited(model, batch[0]), suited(model, batch[1]))


@contextmanager
def layers_in(precision: Precision, device: torch.device) -> Generator[None]:
    """Multiply matrices and convolve in a precision; states of ODEs, log-densities and losses keep theirs."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        yield


class InPrecision(nn.Module):
    """An objective whose fields work in a precision of their own.

    Args:
        objective: a module whose ``forward(batch)`` returns the scalar loss.
        precision: ``"bfloat16"``, or ``"float32"`` to change nothing.
    """

    def __init__(self, objective: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.objective = objective
        self.precision: Precision = precision

    def forward(self, batch: Any) -> Tensor:
        """The loss, a scalar."""
        with layers_in(self.precision, next(self.objective.parameters()).device):
            return self.objective(batch)
