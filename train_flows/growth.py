"""What grows in training: the learning rate in its first steps, and the batch later on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anode import InputError
from train_flows.training import Training


@dataclass(frozen=True)
class Growth:
    """What grows in training."""

    lr_warm_up: int = 0  # steps over which the learning rate rises from 0, at first and anew at a restart
    double_at: tuple[int, ...] = ()  # steps at which the batch doubles

    def check(self) -> None:
        """Raise an :class:`~anode.InputError` for a number out of range."""
        if self.lr_warm_up < 0:
            raise InputError(f"--lr-warm-up {self.lr_warm_up} must be a number of steps from 0")
        if any(step < 1 for step in self.double_at) or list(self.double_at) != sorted(set(self.double_at)):
            raise InputError(f"--double-at {_typed(self.double_at)} must be steps from 1, each after the one before")

    def check_with(self, training: Training, samples: int) -> None:
        """Raise an :class:`~anode.InputError` for growth that a training on so many samples has no room for."""
        if self.lr_warm_up and training.schedule == "plateau":
            raise InputError(
                f"--lr-warm-up {self.lr_warm_up} is of --schedule cosine or constant: drop it, or change it"
            )
        if self.double_at and self.double_at[-1] >= training.steps:
            raise InputError(f"--double-at {_typed(self.double_at)} must lie below --steps {training.steps}")
        largest = training.batch_size * 2 ** len(self.double_at)
        if self.double_at and largest > samples:
            raise InputError(
                f"--double-at {_typed(self.double_at)} makes batches of {largest}, of {samples} training samples: "
                "name fewer steps, or lower --batch-size"
            )

    def share(self, step: int) -> float:
        """The share min(1, (n + 1) / warm-up) of the learning rate, n steps after the beginning or the restart."""
        return min(1.0, (step + 1) / self.lr_warm_up) if self.lr_warm_up else 1.0


def doubled(batch: Callable[[int], Any], double_at: Sequence[int]) -> Callable[[int], Any]:
    """Batches that double at given steps: after p of them, each is made of the next 2^p of a stream of batches.

    What comes at a step depends on the step alone, as in the stream, and its epochs go on undisturbed.

    Args:
        batch: the stream, from its n-th place to a tensor (B, *S) or a tuple of such tensors.
        double_at: increasing steps.

    Returns:
        A function from the step to its batch (2^p B, *S).
    """
    if not double_at:
        return batch
    starts = (0, *double_at)

    def joined(step: int) -> Any:
        p = bisect_right(double_at, step)
        ends = (*double_at[:p], step)
        first = sum(2**i * (end - start) for i, (start, end) in enumerate(zip(starts, ends, strict=False)))
        return _joined([batch(place) for place in range(first, first + 2**p)])

    return joined


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _typed(steps: Sequence[int]) -> str:
    return " ".join(map(str, steps))
