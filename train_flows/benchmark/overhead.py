"""What the field of a training step costs without a solver: its evaluations, recorded and made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anode import Field
from train_flows.benchmark.contenders import Ours


@dataclass
class Call:
    """An evaluation of the field in a training step.

    Attributes:
        divergence: whether with the divergence.
        t: time.
        x: points.
        graph: whether for a backward pass.
        used: whether gradients came back.
    """

    divergence: bool
    t: torch.Tensor
    x: torch.Tensor
    graph: bool
    used: bool = False


def calls_of(ours: Ours, x: torch.Tensor) -> list[Call]:
    """The evaluations of a training step, not compiled."""
    calls: list[Call] = []

    def recorded(evaluate: Callable[..., Any], divergence: bool) -> Callable[..., Any]:
        def call(t: torch.Tensor, x: torch.Tensor, c: None = None) -> Any:
            made = Call(divergence, t, x.detach().clone(), torch.is_grad_enabled())
            calls.append(made)
            found = evaluate(t, x, c)
            for part in found if divergence else (found,):
                if part.requires_grad:
                    part.register_hook(lambda _: setattr(made, "used", True))
            return found

        return call

    field = ours.field
    field.forward = recorded(field.forward, False)
    field.velocity_and_divergence = recorded(field.velocity_and_divergence, True)
    ours.step(x)
    return calls


def again(field: Field, calls: Sequence[Call]) -> None:
    """The evaluations of a training step and their backward passes, without a solver."""
    field.zero_grad()
    ends = []
    for call in calls:
        with torch.set_grad_enabled(call.graph):
            x = call.x.requires_grad_(call.graph)
            found = field.velocity_and_divergence(call.t, x) if call.divergence else (field(call.t, x),)
        ends += [part.sum() for part in found or () if call.used]
    torch.stack(ends).sum().backward()
