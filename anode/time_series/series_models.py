"""Continuous-time models of series with one interface: plain, augmented, second-order and latent neural ODEs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.distributions import Distribution

from anode.errors import config
from anode.layers import ActivationName, Widths
from anode.solver import Solver
from anode.time_series.series import Series

KIND = "series"


@config
class SeriesConfig:
    """Description of a model of time series: plain values that vary in experiments and are stored with a model.

    Attributes:
        kind: state of the ODE: the observation, with augmented dimensions, with its velocity, latent, or a hidden
            state with jumps at observations
        extra: augmented dimensions of anode, and of the latent state
        latent: dimensions of the latent variable, or of the hidden state of ode-rnn
        hidden: widths of the hidden layers of the field
        activation: activation of the hidden layers
        encoder: width of the recurrent encoder of the history
        decoder: widths of the hidden layers from a latent or hidden state to the observation
        start: initial state: encoded from the history, or the first observation with learned augmented dimensions
        noise: distribution of an observation given the state
        noise_from: one noise scale for each feature, or a noise scale that depends on the state
        periods: periods of the calendar features of the field, in units of time
        solver: numerics of the ODE
    """

    kind: Literal["node", "anode", "second-order", "latent", "ode-rnn"] = "node"
    extra: NonNegativeInt = 0
    latent: PositiveInt = 4
    hidden: Widths = (32, 32)
    activation: ActivationName = "tanh"
    encoder: PositiveInt = 32
    decoder: Widths = (32,)
    start: Literal["encoded", "learned"] = "encoded"
    noise: Literal["gaussian", "student"] = "gaussian"
    noise_from: Literal["feature", "state"] = "feature"
    periods: Annotated[tuple[PositiveFloat, ...], Field(max_length=100)] = ()
    solver: Solver = Solver(rtol=1e-3, atol=1e-3)


class SeriesModel(nn.Module):
    """An encoder of the history, an ODE, and a distribution of observations."""

    @property
    def config(self) -> SeriesConfig:
        """The description of the model with its present solver."""
        raise NotImplementedError

    @property
    def arguments(self) -> dict[str, Any]:
        """The plain values from which :func:`series_model` rebuilds the model: ``features`` and the description."""
        raise NotImplementedError

    def fit_units(self, series: Series) -> Self:
        """Take mean and scale of each feature, and the unit of time, from observed values."""
        raise NotImplementedError

    def loss(self, history: Series, target: Series, kl_weight: float = 1.0, samples: int = 1) -> Tensor:
        """Return the NLL of the target per observed value, in original units; for latent the negative ELBO."""
        raise NotImplementedError

    def forecast(self, history: Series, at: Any, samples: int = 100) -> Distribution:
        """Return the distribution of values at times (T,) or (B, T); batch shape (B, T, D), original units."""
        raise NotImplementedError

    def trajectory(self, history: Series, at: Any) -> Tensor:
        """Return the states (B, T, S) at times (T,) or (B, T)."""
        raise NotImplementedError

    def with_solver(self, solver: Solver) -> SeriesModel:
        """Return a copy that shares the weights and solves its ODEs by ``solver``."""
        raise NotImplementedError


def series_model(
    features: int, *, data: Series | None = None, config: SeriesConfig | None = None, **fields: Any
) -> SeriesModel:
    """Build a model of series with D features from its description."""
    raise NotImplementedError
