"""Layers for ``nn.Sequential``: zero augmentation, the flow of an ODE, and discrete networks to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from typing_extensions import override

from anode.errors import InputError
from anode.fields import Field
from anode.inputs import to_tensor, whole_number
from anode.layers import activation_named, widths_of
from anode.solver import Solver, check_solver


class Augment(nn.Module):
    """A layer that appends zeros along dimension 1: x (B, D, ...) -> (x, 0) (B, D + extra, ...).

    The extra dimensions (features of a vector, channels of an image) let the trajectories of an ODE pass each other.
    This is for classifiers and regressors: the density of a zero-padded variable is degenerate.

    Args:
        extra: number of dimensions or channels to append; 0 leaves x unchanged.

    References:
        Dupont et al. 2019, arXiv 1904.01681, section 4.

    Example:
        >>> Augment(5)(torch.randn(8, 2)).shape
        torch.Size([8, 7])
    """

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = whole_number("extra", extra, 0)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = to_tensor("x", x, torch.empty(0))
        if x.ndim < 2:
            raise InputError(f"x of shape {tuple(x.shape)} does not have a dimension 1: pass (B, D), or x.unsqueeze(1)")
        return torch.cat([x, x.new_zeros(len(x), self.extra, *x.shape[2:])], dim=1)


class FirstComponents(nn.Module):
    """The first K components of the state (B, D) as outputs (B, K), for networks without a learned readout."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    @override
    def forward(self, y: Tensor) -> Tensor:
        return y[:, : self.outputs]


class ODEBlock(nn.Module):
    """The flow of a field over unit time as a layer: x(0) -> x(1), dx/dt = f(t, x, c).

    ``torch.compile`` leaves the block uncompiled, since its steps depend on the data; compile the field instead,
    ``block.field.compile()``.

    Args:
        field: the vector field, or any network that :meth:`anode.Field.wrap` makes a field of.
        solver: the numerics, or the name of a method; assign another to solve a trained block differently.

    References:
        Chen et al. 2018, arXiv 1806.07366.

    Example:
        >>> from anode import MLPField
        >>> classifier = nn.Sequential(Augment(5), ODEBlock(MLPField(7)), nn.Linear(7, 10))
        >>> classifier(torch.randn(8, 2)).shape
        torch.Size([8, 10])
    """

    def __init__(self, field: Field | Callable[..., Tensor], solver: Solver | str = Solver()) -> None:  # noqa: B008
        super().__init__()
        self.field = Field.wrap(field)
        self.solver = check_solver(solver)

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Integrate from time 0 to time 1.

        Args:
            x: the state at time 0, (B, *S).
            c: context of the field, (B, C), or None.

        Returns:
            The state at time 1, (B, *S).
        """
        x, c = self._inputs(x, c)
        return self.solver.integrate(partial(self.field, c=c), x, 0.0, 1.0, (c,), self.field)

    def trajectory(self, x: Tensor, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        """Return the states (T, B, *S) at T times; the first time is that of x."""
        x, c = self._inputs(x, c)
        return self.solver.trajectory(partial(self.field, c=c), x, times, (c,), self.field)

    def _inputs(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        like = next(self.field.parameters(), torch.empty(0))
        return to_tensor("x", x, like), None if c is None else to_tensor("c", c, like)

    @override
    def extra_repr(self) -> str:
        return f"solver={self.solver}"


class ResNet(nn.Module):
    """Residual blocks x <- x + f_k(x), k = 1 ... K: Euler steps of an ODE with a different field at each step.

    Args:
        fields: f_1 ... f_K; they are evaluated at times 0, 1/K, ..., which time-independent fields ignore.

    References:
        He et al. 2016, arXiv 1512.03385; Dupont et al. 2019, arXiv 1904.01681, section 3.

    Example:
        >>> from anode import MLPField
        >>> ResNet(MLPField(2, (16,), time="none") for _ in range(5))(torch.randn(8, 2)).shape
        torch.Size([8, 2])
    """

    def __init__(self, fields: Iterable[Field]) -> None:
        super().__init__()
        self.fields = nn.ModuleList(map(Field.wrap, fields))
        if len(self.fields) == 0:
            raise InputError("fields is empty: a residual network needs at least one block")

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self._states(to_tensor("x", x, next(self.parameters(), torch.empty(0))))[-1]

    def trajectory(self, x: Tensor, times: Sequence[float] | Tensor) -> Tensor:
        """Return the states (T, B, *S) at times in [0, 1]; block k ends at k/K, with straight lines between blocks."""
        x = to_tensor("x", x, next(self.parameters(), torch.empty(0)))
        states = torch.stack(self._states(x))
        times = to_tensor("times", times).to(x)
        if not ((times >= 0) & (times <= 1)).all():
            raise InputError(f"times={times.tolist()} must lie from 0, before the first block, to 1, after the last")
        depth = times * len(self.fields)
        before = depth.long().clamp(max=len(self.fields) - 1)
        share = (depth - before).view(-1, *[1] * x.ndim)
        return torch.lerp(states[before], states[before + 1], share)

    def _states(self, x: Tensor) -> list[Tensor]:
        states = [x]
        for k, field in enumerate(self.fields):
            states.append(states[-1] + field(x.new_tensor(k / len(self.fields)), states[-1]))
        return states


class MLP(nn.Module):
    """A multilayer perceptron without its last layer: x (B, *S), flattened, -> last hidden activations (B, H).

    Args:
        dim: number of dimensions of one sample.
        hidden: widths of the hidden layers, or the width of one.
        activation: ``"relu"``, ``"tanh"``, ``"softplus"`` or ``"silu"``.
    """

    def __init__(self, dim: int, hidden: int | Sequence[int] = (32, 32), activation: str = "relu") -> None:
        super().__init__()
        hidden = widths_of("hidden", hidden)
        if not hidden or dim < 1:
            raise InputError(f"dim={dim} and hidden={tuple(hidden)} must be positive, with at least one hidden layer")
        self.activation = activation_named(activation)
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise((dim, *hidden)))

    @override
    def forward(self, x: Tensor) -> Tensor:
        h = to_tensor("x", x, next(self.parameters())).flatten(1)
        for layer in self.layers:
            h = self.activation.value(layer(h))
        return h
