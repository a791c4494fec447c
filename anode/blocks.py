"""ODE blocks that drop into ``nn.Sequential``: zero augmentation and the integration of a field."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from anode.errors import InputError
from anode.fields import Field
from anode.solver import Solver


class Augment(nn.Module):
    """Append zeros along dimension 1: x (B, D, ...) -> (x, 0) (B, D + extra, ...).

    The room of the extra dimensions (features of a vector, channels of an image) lets the trajectories of an ODE pass
    each other. This is for classifiers and regressors: the density of a zero-padded variable is degenerate.

    Args:
        extra: how many dimensions or channels to append; 0 leaves x as it is.

    Raises:
        InputError: when ``extra`` is negative.

    References:
        Dupont, Doucet, Teh 2019, arXiv 1904.01681, section 4.

    Example:
        >>> Augment(5)(torch.randn(8, 2)).shape
        torch.Size([8, 7])
    """

    def __init__(self, extra: int) -> None:
        super().__init__()
        if extra < 0:
            raise InputError(f"extra={extra} must be 0 or more")
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """Append the zeros."""
        return torch.cat([x, x.new_zeros(len(x), self.extra, *x.shape[2:])], dim=1)


class ODEBlock(nn.Module):
    """The flow of a field over unit time as a layer: x(0) -> x(1), dx/dt = f(t, x, c).

    Under ``torch.compile`` the block stays as it is, since its steps depend on the data; the field itself compiles,
    ``ODEBlock(torch.compile(field))``.

    Args:
        field: the vector field.
        solver: the numerics; assign another to re-solve a trained block.

    References:
        Chen, Rubanova, Bettencourt, Duvenaud 2018, arXiv 1806.07366.

    Example:
        >>> from anode import MLPField
        >>> classifier = nn.Sequential(Augment(5), ODEBlock(MLPField(7)), nn.Linear(7, 10))
        >>> classifier(torch.randn(8, 2)).shape
        torch.Size([8, 10])
    """

    def __init__(self, field: Field, solver: Solver = Solver()) -> None:  # noqa: B008 - a frozen value
        super().__init__()
        self.field = field
        self.solver = solver

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Integrate from 0 to 1.

        Args:
            x: (B, *S), the state at time 0.
            c: context of the field, (B, C), or None.

        Returns:
            The state at time 1, (B, *S).

        Raises:
            SolverError: when time 1 cannot be reached.
        """
        return self.solver.integrate(partial(self.field, c=c), x, 0.0, 1.0, (c,), self.field)

    def trajectory(self, x: Tensor, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        """The states (T, B, *S) at the given T times, the first of them x itself."""
        return self.solver.trajectory(partial(self.field, c=c), x, times, (c,), self.field)

    def extra_repr(self) -> str:
        """The solver, for ``print``."""
        return f"solver={self.solver}"
