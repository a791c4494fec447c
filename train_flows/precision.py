"""Half the bits for the layers of networks, and all of them for what is summed up."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from train_flows.training import Precision


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
