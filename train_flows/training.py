"""How to optimise, as values: counted in steps or in epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from anode import InputError

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Training:
    """How to optimise."""

    steps: int = 600  # optimiser steps
    batch_size: int = 512  # samples a step
    lr: float = 1e-2  # learning rate of Adam
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"  # of the learning rate
    clip: float = 10.0  # largest norm of the gradient
    weight_decay: float = 0.0  # of Adam: the factor of half the squared norm of the weights in the loss
    ema: float = 0.0  # decay of the moving average of the weights, which is what is validated and stored; 0 for none
    validate_every: int = 100  # steps between validations, records and checkpoints
    restart: int | None = None  # step at which a cosine begins anew; where likelihood follows flow matching, if omitted
    restart_lr: float | None = None  # learning rate from which it does; that of the beginning, if omitted
    precision: Precision = "float32"  # of the fields while training; states, log-densities and figures are in --dtype

    def check(self) -> None:
        """Raise an :class:`~anode.InputError` for a number out of range."""
        for name in ("steps", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        for name in ("lr", "clip", "restart_lr"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"--{name.replace('_', '-')} {value} must be a positive number")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise InputError(f"--weight-decay {self.weight_decay} must be a number from 0")
        if not 0 <= self.ema < 1:
            raise InputError(f"--ema {self.ema} must lie in [0, 1), such as 0.999")
        if self.restart is not None and not 0 < self.restart < self.steps:
            raise InputError(f"--restart {self.restart} must be from 1 to {self.steps - 1}, below --steps")
        if self.restart is not None and self.schedule != "cosine":
            raise InputError(f"--restart {self.restart} is of --schedule cosine: drop it, or change the schedule")


@dataclass(frozen=True)
class Epochs:
    """How to optimise, counted in passes through the data."""

    epochs: int = 30  # passes through the training samples
    batch_size: int = 64  # samples a step
    lr: float = 1e-3  # learning rate of Adam
    schedule: Literal["cosine", "plateau", "constant"] = "constant"  # of the learning rate
    clip: float = 10.0  # largest norm of the gradient
    weight_decay: float = 0.0  # of Adam: the factor of half the squared norm of the weights in the loss
    ema: float = 0.0  # decay of the moving average of the weights, which is what is validated and stored; 0 for none
    precision: Precision = "float32"  # of the layers while training; states and figures are in float32

    def training(self, samples: int) -> Training:
        """The same in steps, with a record each epoch."""
        per_epoch = samples // self.batch_size
        return self._in_steps(self.epochs * per_epoch, validate_every=per_epoch)

    def check(self) -> None:
        """Raise an :class:`~anode.InputError` for a number out of range."""
        if self.epochs < 1:
            raise InputError(f"--epochs {self.epochs} must be at least 1")
        self._in_steps(1, validate_every=1).check()

    def _in_steps(self, steps: int, validate_every: int) -> Training:
        same = {name: getattr(self, name) for name in ("batch_size", "lr", "schedule", "clip", "weight_decay", "ema")}
        return Training(steps, **same, validate_every=validate_every)
