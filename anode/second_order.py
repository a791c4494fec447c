"""Second-order dynamics as a first-order field of position and velocity."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from anode.errors import InputError
from anode.fields import Field


class SecondOrderField(Field):
    """The motion d^2x/dt^2 = a(t, x, dx/dt) as a field of y = (x, v), joined along dimension 1.

        dx/dt = v,    dv/dt = a(t, x, v)

    The velocity is the augmented half: ``Augment(D)`` starts a motion at rest, a learned linear layer with a push.
    The divergence of the field is tr(da/dv) alone, since dx/dt does not depend on x.

    Args:
        acceleration: a field of the velocity with the flattened position as context: ``acceleration(t, v, x)``. A
            context c of the motion is joined to the position: ``acceleration(t, v, (x, c))``.

    References:
        Norcliffe et al. 2020, arXiv 2006.07220, section 3.

    Example:
        >>> from torch import nn
        >>> from anode import Augment, MLPField, ODEBlock
        >>> block = ODEBlock(SecondOrderField(MLPField(2, context=2)))
        >>> nn.Sequential(Augment(2), block, nn.Linear(4, 1))(torch.randn(8, 2)).shape
        torch.Size([8, 1])
    """

    def __init__(self, acceleration: Field) -> None:
        super().__init__()
        self.acceleration = Field.wrap(acceleration)

    @override
    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        velocity, context = _velocity_and_context(x, c)
        return torch.cat([velocity, self.acceleration(t, velocity, context)], dim=1)

    @override
    def velocity_and_divergence(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        velocity, context = _velocity_and_context(x, c)
        rates = self.acceleration.velocity_and_divergence(t, velocity, context)
        return None if rates is None else (torch.cat([velocity, rates[0]], dim=1), rates[1])


def _velocity_and_context(y: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    """Split a state into the velocity, and the position with the context of the motion (B, X + C)."""
    if y.shape[1] % 2:
        raise InputError(f"x of shape {tuple(y.shape)} is not (position, velocity): pass an even dimension 1")
    position, velocity = y.chunk(2, dim=1)
    position = position.flatten(1)
    return velocity, position if c is None else torch.cat([position, c], dim=1)
