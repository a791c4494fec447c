"""Predictive distributions of observations: Gaussian and Student-t noise, and their mixtures over latent samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal
from torch.distributions import StudentT as _StudentT
from torch.nn import functional as F
from typing_extensions import override

from anode.blocks import MLP

LEAST_SCALE = 1e-3  # of the noise, in standard deviations of the feature: the NLL has a lower bound
FIRST_SCALE = 0.5
LEAST_DF = 2.0  # degrees of freedom, beyond which the variance is finite


class StudentT(_StudentT):
    """Student's t distribution with its distribution function and quantiles, which do not have gradients."""

    @override
    def cdf(self, value: Tensor) -> Tensor:
        from scipy.special import stdtr  # here, since the other distributions do without it

        z = (value - self.loc) / self.scale
        return self._by_scipy(stdtr, z)

    @override
    def icdf(self, value: Tensor) -> Tensor:
        from scipy.special import stdtrit

        return self.loc + self.scale * self._by_scipy(stdtrit, value)

    def _by_scipy(self, function: Any, z: Tensor) -> Tensor:
        df, z = torch.broadcast_tensors(self.df, z)
        return torch.from_numpy(function(df.double().cpu().numpy(), z.detach().double().cpu().numpy())).to(self.loc)


class Mixture(MixtureSameFamily):
    """An equal mixture of K distributions of observations, one for each sampled path, with quantiles.

    ``log_prob`` and ``cdf`` are those of each observation alone. ``sample`` draws one path for each series and adds
    the noise to it, so that the values of a sample at different times belong together.

    Args:
        components: distributions of batch shape (B, T, D, K).
    """

    def __init__(self, components: Normal | StudentT) -> None:
        super().__init__(Categorical(logits=torch.zeros_like(components.loc)), components)

    @override
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        components: Any = self.component_distribution
        (batch, *inner, k), shape = components.batch_shape, tuple(sample_shape)
        index = torch.randint(k, (*shape, batch, *[1] * len(inner), 1), device=components.loc.device)
        index = index.expand(*shape, batch, *inner, 1)
        parts = {
            name: getattr(components, name).expand(*shape, batch, *inner, k).gather(-1, index).squeeze(-1)
            for name in components.arg_constraints
        }
        return type(components)(**parts).sample()

    @override
    @torch.no_grad()
    def icdf(self, value: Tensor) -> Tensor:
        """Return quantiles by bisection between the smallest and the largest quantile of the components."""
        each = self.component_distribution.icdf(value.unsqueeze(-1))
        low, high = each.amin(-1), each.amax(-1)
        for _ in range(60 if low.dtype == torch.float64 else 30):
            middle = (low + high) / 2
            below = self.cdf(middle) < value
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


class Emission(nn.Module):
    """The distribution of a standardised observation given the state.

    Its mean is a perceptron of the state, or the first D components of the state. Its scale is a parameter of each
    feature, or a perceptron of the state.

    Args:
        state: dimensions S of the state.
        features: dimensions D of an observation.
        decoder: widths of the hidden layers of the perceptrons.
        activation: their activation.
        decodes: True for a mean by a perceptron.
        noise: ``"gaussian"`` or ``"student"``, with learned degrees of freedom, above 2.
        noise_from: ``"feature"`` or ``"state"``.
    """

    def __init__(
        self,
        state: int,
        features: int,
        decoder: Sequence[int],
        activation: str,
        decodes: bool,
        noise: str,
        noise_from: str,
    ) -> None:
        super().__init__()
        self.features = features
        self.mean = _perceptron(state, decoder, features, activation) if decodes else None
        raw = math.log(math.expm1(FIRST_SCALE))
        if noise_from == "state":
            self.raw_scale: Any = _perceptron(state, decoder, features, activation)
            with torch.no_grad():
                self.raw_scale[-1].weight.zero_()
                self.raw_scale[-1].bias.fill_(raw)
        else:
            self.raw_scale = nn.Parameter(torch.full((features,), raw))
        self.raw_df = nn.Parameter(torch.full((features,), 5.0)) if noise == "student" else None

    @override
    def forward(self, states: Tensor, mean: Tensor, scale: Tensor) -> Normal | StudentT:
        """Return the distribution of observations, batch shape (..., D), at states (..., S).

        Args:
            states: the states.
            mean: mean of each feature, (D,), in the units of the observations.
            scale: standard deviation of each feature, (D,).
        """
        flat = states.reshape(-1, states.shape[-1])
        loc = flat[:, : self.features] if self.mean is None else self.mean(flat)
        raw = self.raw_scale(flat) if isinstance(self.raw_scale, nn.Module) else self.raw_scale.expand_as(loc)
        spread = F.softplus(raw) + LEAST_SCALE
        shape = (*states.shape[:-1], self.features)
        loc, spread = (mean + scale * loc).view(shape), (scale * spread).reshape(shape)
        if self.raw_df is None:
            return Normal(loc, spread)
        return StudentT((LEAST_DF + F.softplus(self.raw_df)).expand(shape), loc, spread)


def predictive(components: Normal | StudentT) -> Distribution:
    """Return the mixture over the K samples of batch shape (K, B, T, D), (B, T, D)."""
    parts = {name: getattr(components, name) for name in components.arg_constraints}
    if len(components.loc) == 1:
        return type(components)(**{name: part[0] for name, part in parts.items()})
    return Mixture(type(components)(**{name: part.movedim(0, -1) for name, part in parts.items()}))


def _perceptron(dim: int, hidden: Sequence[int], outputs: int, activation: str) -> nn.Sequential:
    if not hidden:
        return nn.Sequential(nn.Linear(dim, outputs))
    return nn.Sequential(MLP(dim, hidden, activation), nn.Linear(hidden[-1], outputs))
