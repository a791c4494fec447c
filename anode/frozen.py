"""A field with parts that stand still: a family of fields, told apart by augmented dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from anode.conv_stack import ConvStack
from anode.errors import InputError
from anode.fields import Field


class FrozenField(Field):
    """The field of y = (x, a), joined along dimension 1, whose augmented part a stands still.

        dx/dt = f(t, x, a),    da/dt = 0

    Each a has a flow of x of its own: with a random a, a density of y is a continuous mixture of flows. The divergence
    is that of f with respect to x alone.

    Args:
        field: f, with a as its context: flattened, or as it is for a :class:`ConvStack`.
        extra: dimensions of a, or channels.

    Raises:
        InputError: when ``extra`` is less than 1.

    References:
        Cornish, Caterini, Deligiannidis, Doucet 2020, arXiv 1909.13833 (continuously indexed flows).

    Example:
        >>> from anode import Augment, MLPField, ODEBlock
        >>> block = ODEBlock(FrozenField(MLPField(2, context=3), extra=3))
        >>> block(torch.cat([torch.randn(8, 2), torch.ones(8, 3)], 1))[0, 2:].detach()
        tensor([1., 1., 1.])
    """

    def __init__(self, field: Field, extra: int) -> None:
        super().__init__()
        if extra < 1:
            raise InputError(f"extra={extra} must be at least 1")
        self.field = field
        self.extra = extra

    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Evaluate the field; see :meth:`Field.forward`."""
        moving, frozen = self._parts(x)
        return self._beside(self.field(t, moving, self._context(frozen, c)), frozen)

    def velocity_and_divergence(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Field.velocity_and_divergence`; that of f with respect to x."""
        moving, frozen = self._parts(x)
        known = self.field.velocity_and_divergence(t, moving, self._context(frozen, c))
        return None if known is None else (self._beside(known[0], frozen), known[1])

    def diagonal(self, width: int) -> slice:
        """See :meth:`Field.diagonal`; what moves."""
        return slice(width - self.extra)

    def _parts(self, y: Tensor) -> tuple[Tensor, Tensor]:
        if y.shape[1] <= self.extra:
            raise InputError(f"x of shape {tuple(y.shape)} holds nothing beside {self.extra} frozen dimensions")
        return y[:, : -self.extra], y[:, -self.extra :]

    def _context(self, frozen: Tensor, c: Tensor | None) -> Tensor:
        if isinstance(self.field, ConvStack) and c is None:
            return frozen
        return frozen.flatten(1) if c is None else torch.cat([frozen.flatten(1), c], 1)

    @staticmethod
    def _beside(velocity: Tensor, frozen: Tensor) -> Tensor:
        return torch.cat([velocity, torch.zeros_like(frozen)], 1)
