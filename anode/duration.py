"""A field over a learned length of time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from anode.errors import InputError
from anode.fields import Field


class Duration(Field):
    """The field f over a learned length of time T > 0, as a field over unit time.

        f'(t, x, c) = T f(T t, x, c),    T = s^2 with s learned

    If x(t) solves dx/dt = f(t, x, c), then x(T t) solves dx/dt = f'(t, x, c). Hence to integrate f' over [0, 1] is to
    integrate f over [0, T], and whatever solves over unit time learns how long to flow, by one more parameter.

    Args:
        field: the field f.
        initial: T to begin with.

    Raises:
        InputError: when ``initial`` is not a positive number.

    References:
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud 2019, arXiv 1810.01367, its code.

    Example:
        >>> from anode import MLPField, ODEBlock
        >>> block = ODEBlock(Duration(MLPField(3), initial=0.5))
        >>> block(torch.randn(8, 3)).shape
        torch.Size([8, 3])
        >>> round(block.field.length.item(), 4)
        0.5
    """

    def __init__(self, field: Field, initial: float = 1.0) -> None:
        super().__init__()
        if not (initial > 0 and math.isfinite(initial)):
            raise InputError(f"initial={initial} must be a positive number, such as 1.0")
        self.field = field
        self.s = nn.Parameter(torch.tensor(math.sqrt(initial)))

    @property
    def length(self) -> Tensor:
        """T, ()."""
        return self.s * self.s

    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Evaluate the field; see :meth:`Field.forward`."""
        length = self.length
        return length * self.field(length * t, x, c)

    def velocity_and_divergence(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Field.velocity_and_divergence`; T times those of f, None where f has none."""
        length = self.length
        known = self.field.velocity_and_divergence(length * t, x, c)
        return None if known is None else (length * known[0], length * known[1])
