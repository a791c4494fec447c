"""An exponential moving average of weights, which is steadier than the weights themselves."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """The moving average v <- d v + (1 - d) w of parameters w.

    After n steps d is at most (1 + n) / (10 + n), so that the random weights of the beginning are soon forgotten.

    Args:
        parameters: w.
        decay: d, such as 0.999; with 0 the average is the parameters themselves, at no cost.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters) if decay else []
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the parameters after so many steps."""
        if self.parameters:
            decay = min(self.decay, (1 + steps) / (10 + steps))
            for value, parameter in zip(self.values, self.parameters, strict=True):
                value.lerp_(parameter, 1 - decay)

    @contextmanager
    def in_place(self) -> Generator[None]:
        """Give the parameters their average for a while."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=True):
            kept = parameter.clone()
            parameter.copy_(value)
            value.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """The average, to resume from."""
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Go on from a state."""
        for value, stored in zip(self.values, state["values"], strict=True):
            value.copy_(stored)
