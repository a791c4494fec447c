"""Discrete networks to compare ODE blocks with: the residual network, whose steps they refine, and the perceptron."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from anode.activations import activation as find_activation
from anode.errors import InputError
from anode.fields import Field


class ResNet(nn.Module):
    """Residual blocks, the Euler steps of an ODE with a field of its own at each: x <- x + f_k(x), k = 1 ... K.

    Args:
        fields: f_1 ... f_K; they are evaluated at times 0, 1/K, ..., which time-independent ones ignore.

    Raises:
        InputError: when there is no field.

    References:
        He, Zhang, Ren, Sun 2016, arXiv 1512.03385; Dupont, Doucet, Teh 2019, arXiv 1904.01681, section 3.

    Example:
        >>> from anode import MLPField
        >>> ResNet(MLPField(2, (16,), time="none") for _ in range(5))(torch.randn(8, 2)).shape
        torch.Size([8, 2])
    """

    def __init__(self, fields: Iterable[Field]) -> None:
        super().__init__()
        self.fields = nn.ModuleList(fields)
        if len(self.fields) == 0:
            raise InputError("fields is empty: a residual network needs at least one block")

    def forward(self, x: Tensor) -> Tensor:
        """Apply all blocks to x (B, *S)."""
        return self._states(x)[-1]

    def trajectory(self, x: Tensor, times: Sequence[float] | Tensor) -> Tensor:
        """The states (T, B, *S) at the given times in [0, 1], block k ending at k/K; straight lines between blocks."""
        states = torch.stack(self._states(x))
        depth = torch.as_tensor(times, dtype=x.dtype, device=x.device).clamp(0, 1) * len(self.fields)
        before = depth.long().clamp(max=len(self.fields) - 1)
        share = (depth - before).view(-1, *[1] * x.ndim)
        return torch.lerp(states[before], states[before + 1], share)

    def _states(self, x: Tensor) -> list[Tensor]:
        states = [x]
        for k, field in enumerate(self.fields):
            states.append(states[-1] + field(x.new_tensor(k / len(self.fields)), states[-1]))
        return states


class MLP(nn.Module):
    """A multilayer perceptron: x (B, *S), flattened, -> the activations of its last hidden layer (B, H).

    Args:
        dim: number of dimensions of one sample.
        hidden: widths of the hidden layers.
        activation: see :class:`~anode.MLPField`.

    Raises:
        InputError: for an unknown activation, or no hidden layer.
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (32, 32), activation: str = "relu") -> None:
        super().__init__()
        if not hidden or min(dim, *hidden) < 1:
            raise InputError(f"dim={dim} and hidden={tuple(hidden)} must be positive, with one hidden layer at least")
        self.activation = find_activation(activation)
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise((dim, *hidden)))

    def forward(self, x: Tensor) -> Tensor:
        """The last hidden activations (B, H)."""
        h = x.flatten(1)
        for layer in self.layers:
            h = self.activation.value(layer(h))
        return h
