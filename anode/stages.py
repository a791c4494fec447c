"""A network in three stages: inputs to the state at time 0, to the state at time 1, to outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anode.baselines import ResNet
from anode.blocks import ODEBlock
from anode.errors import InputError
from anode.solver import solvers_in


class Classifier(nn.Module):
    """Outputs = readout(body(lift(x))): from inputs to the state at time 0, to the state at time 1, to outputs.

    Args:
        lift: from inputs (B, *S) to states, such as :class:`~anode.Augment`.
        body: from states at time 0 to states at time 1, such as :class:`~anode.ODEBlock`.
        readout: from states to outputs (B, K): logits of classes, or values.

    Attributes:
        arguments: of :func:`classifier`, where it made the model; else None.
    """

    arguments: dict[str, Any] | None = None

    def __init__(self, lift: nn.Module, body: nn.Module, readout: nn.Module) -> None:
        super().__init__()
        self.lift = lift
        self.body = body
        self.readout = readout

    @property
    def config(self) -> dict[str, Any] | None:
        """The plain values that rebuild the model as it is solved now; None for a model composed by hand."""
        return config_of(self, self.arguments)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs (B, K) of x (B, *S)."""
        return self.readout(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """What the readout sees: the states at time 1."""
        return self.body(self.state(x))

    def state(self, x: Tensor) -> Tensor:
        """The states at time 0, in float32 at least, also where layers compute in less under ``torch.autocast``."""
        lifted = self.lift(x)
        return lifted.to(torch.promote_types(lifted.dtype, torch.float32))

    def trajectory(self, x: Tensor, times: Sequence[float] | Tensor) -> Tensor:
        """The states (T, B, ...) at the given times, from 0 to 1; straight lines between the blocks of a ResNet.

        Raises:
            InputError: for a body without trajectories, such as a multilayer perceptron, or times that begin elsewhere.
        """
        if not isinstance(self.body, ODEBlock | ResNet):
            raise InputError(f"model has a body {type(self.body).__name__}, which has no trajectories: take an ODE")
        if len(times) == 0 or float(times[0]) != 0:
            raise InputError(f"times={times} must begin at 0, where the states are those of the lift")
        return self.body.trajectory(self.state(x), times)


class Leading(nn.Module):
    """The first components of the state as outputs, for networks without a learned readout."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, y: Tensor) -> Tensor:
        """The first components (B, K) of the state y (B, D)."""
        return y[:, : self.outputs]


def config_of(model: nn.Module, arguments: Any) -> Any:
    """Throw-away: cut with schema 1."""
    from dataclasses import asdict

    if arguments is None:
        return None
    solvers = solvers_in(model)
    return {**arguments, **({"solver": asdict(solvers[0])} if solvers else {})}
