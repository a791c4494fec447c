"""Continuous-time models of series with one interface: plain, augmented, second-order and latent neural ODEs."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.distributions import Distribution
from typing_extensions import override

from anode.errors import InputError, config, config_of
from anode.fields import MLPField
from anode.inputs import to_tensor, whole_number
from anode.layers import ActivationName, Widths
from anode.second_order import SecondOrderField
from anode.solver import Solver, with_solver
from anode.time_series.encoders import BackwardGRU, ObservedStart, PosteriorStart
from anode.time_series.paths import CalendarField, FilteredPaths, SolvedPaths
from anode.time_series.predictive import Emission, predictive
from anode.time_series.series import History, Series, without_gaps
from anode.units import Normalize

KIND = "series"


@config
class SeriesConfig:
    """Description of a model of time series: plain values that vary in experiments and are stored with a model.

    | `kind` | state | starts from |
    |---|---|---|
    | `"node"` | observation | first observation |
    | `"anode"` | observation and `extra` dimensions | first observation |
    | `"second-order"` | observation and its velocity | first observation |
    | `"latent"` | `latent` and `extra` dimensions | posterior given the history |
    | `"ode-rnn"` | `latent` hidden dimensions, with a jump at every observation | learned |

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
        start_noise: standard deviation of noise on initial states in training, from which paths learn to come back
        noise: distribution of an observation given the state
        noise_from: one noise scale for each feature, or a noise scale that depends on the state
        periods: periods of the calendar features of the field, in units of time
        solver: numerics of the ODE; dopri5 and tsit5 interpolate, other methods step on all times of a batch

    References:
        Chen et al. 2018, arXiv 1806.07366 (latent); Rubanova et al. 2019, arXiv 1907.03907 (ode-rnn); Dupont et al.
        2019, arXiv 1904.01681 (anode); Norcliffe et al. 2020, arXiv 2006.07220 (second-order).
    """

    kind: Literal["node", "anode", "second-order", "latent", "ode-rnn"] = "node"
    extra: NonNegativeInt = 0
    latent: PositiveInt = 4
    hidden: Widths = (32, 32)
    activation: ActivationName = "tanh"
    encoder: PositiveInt = 32
    decoder: Widths = (32,)
    start: Literal["encoded", "learned"] = "encoded"
    start_noise: NonNegativeFloat = 0.0
    noise: Literal["gaussian", "student"] = "gaussian"
    noise_from: Literal["feature", "state"] = "feature"
    periods: Annotated[tuple[PositiveFloat, ...], Field(max_length=100)] = ()
    solver: Solver = Solver(rtol=1e-3, atol=1e-3, gradient="direct")  # the states are small

    def __post_init__(self) -> None:
        if self.kind == "anode" and self.extra == 0:
            raise InputError("extra=0 must be at least 1 with kind='anode': pass it, or kind='node'")
        if self.kind in ("node", "second-order", "ode-rnn") and self.extra:
            raise InputError(
                f"extra={self.extra} has no effect on kind={self.kind!r}: pass kind='anode' or kind='latent'"
            )
        if self.kind in ("latent", "ode-rnn") and self.start != "encoded":
            raise InputError(f"start={self.start!r} has no effect on kind={self.kind!r}: leave it out")


class SeriesModel(nn.Module):
    """Paths of states given a history, and the distribution of observations given the states.

    Args:
        config: the description.
        features: number D of features of an observation.

    Attributes:
        features: D.
        paths: states at any times from the history, by an ODE.
        emission: distribution of a standardised observation given the state.
        scaling: mean and scale of each feature.
        unit: unit of time of the ODE, in the units of the times.
    """

    unit: Tensor

    def __init__(self, config: SeriesConfig, features: int) -> None:
        super().__init__()
        self._config = config
        self.features = features
        self.scaling = Normalize((features,))
        self.register_buffer("unit", torch.ones(()))
        self.paths = _paths(config, features)
        decodes = config.kind in ("latent", "ode-rnn")
        layers = (config.decoder, config.activation)
        self.emission = Emission(self.paths.dim, features, *layers, decodes, config.noise, config.noise_from)

    @property
    def config(self) -> SeriesConfig:
        """The description of the model with its present solver."""
        return replace(self._config, solver=self.paths.solver)

    @property
    def arguments(self) -> dict[str, Any]:
        """The plain values from which :func:`series_model` rebuilds the model."""
        return {"features": self.features, **asdict(self.config)}

    def fit_units(self, series: Series) -> Self:
        """Take mean and scale of each feature, and the unit of time, from observed values.

        The unit of time is the shortest lag, of 1, 2, 4, ... observations, at which values differ by a standard
        deviation (root mean square); an oscillation then has an angular frequency near 1, whatever its period.

        Raises:
            InputError: if a feature is never observed.
        """
        self._check("series", series)
        seen = series.mask > 0
        values = series.values.double().where(seen, 0.0)
        counts = seen.sum((0, 1))
        if (counts == 0).any():
            raise InputError(
                f"series lacks observed values of feature {int((counts == 0).nonzero()[0])}: leave that out"
            )
        mean = values.sum((0, 1)) / counts
        deviations = (values - mean).where(seen, 0.0)
        std = (deviations.square().sum((0, 1)) / counts).sqrt()
        scale = torch.where(std > 0, std, 1.0)
        self.scaling.mean.copy_(mean)
        self.scaling.scale.copy_(scale)
        self.unit.fill_(_time_unit(series.times, deviations / scale, seen))
        if isinstance(self.paths.field, CalendarField):
            self.paths.field.set_unit(self.unit.item())
        return self

    def loss(self, history: Series, target: Series, kl_weight: float = 1.0, samples: int = 1) -> Tensor:
        """Compute the loss of a target per observed value n, in nats and the units of the data.

            (-log p(target | y(0)) + |e|^2 / 2) / n             with an encoded correction e of the initial state y(0)
            (-E_q[log p(target | z)] + KL(q, p)) / n            for kind="latent", a bound of -log p(target) / n
            -log p(target) / n                                  otherwise

        The initial states have the noise ``start_noise`` of the configuration, in standard deviations of a feature.

        Args:
            history: observations that the model sees; it ignores times without one.
            target: observations to predict, from the first time of the history on: within it, after it, or both.
                ``kind="ode-rnn"`` predicts each one from the history before it.
            kl_weight: weight of the term of the prior, below 1 early in training to keep the posterior from collapsing.
            samples: samples of the posterior.

        Returns:
            A scalar.
        """
        known = self._history(history)
        self._check("target", target)
        self._check_rows("target", target.times, known)
        seen = target.mask > 0
        n = seen.sum()
        if n == 0:
            raise InputError("target lacks observed values: pass observations to predict")
        times = self._relative("target", target.times, known, target.observed)
        states, kl = self.paths(known, times, samples, self._config.start_noise)
        values = target.values.to(self.scaling.mean).where(seen, self.scaling.mean)
        log_prob = self.emission(states, self.scaling.mean, self.scaling.scale).log_prob(values)
        return (kl_weight * kl.sum() - log_prob.where(seen, 0.0).sum() / len(states)) / n

    @torch.no_grad()
    def forecast(self, history: Series, at: Any, samples: int = 100) -> Distribution:
        """Predict the values at any times from the first of the history on.

        Args:
            history: observations that the model sees.
            at: times (T,), or (B, T) with times for each series.
            samples: samples of the latent posterior, which the prediction is a mixture over.

        Returns:
            The distribution of each value, batch shape (B, T, D), in the units of the data: a Normal,
            :class:`~anode.time_series.predictive.StudentT`, or :class:`~anode.time_series.predictive.Mixture`, with
            ``mean``, ``variance``, ``log_prob``, ``sample``, ``cdf`` and ``icdf``.
        """
        known, times = self._history_and_times(history, at)
        states, _ = self.paths(known, times, whole_number("samples", samples))
        return predictive(self.emission(states, self.scaling.mean, self.scaling.scale))

    def trajectory(self, history: Series, at: Any) -> Tensor:
        """Return the states (B, T, S) at times ``at``; of the mean of the posterior for ``kind="latent"``.

        The first D dimensions of ``node``, ``anode`` and ``second-order`` are the observation in standard units; the
        last D of ``second-order`` are its velocity by the time in units of ``unit``.
        """
        states, _ = self.paths(*self._history_and_times(history, at), 0)
        return states[0]

    def with_solver(self, solver: Solver) -> SeriesModel:
        """Return a copy that shares the weights and solves its ODEs by ``solver``."""
        return with_solver(self, solver)

    def _history(self, series: Series) -> History:
        """Check a history and convert it to the units of the model."""
        self._check("history", series)
        like = self.scaling.mean
        series = Series(*(part.to(like.device) for part in series))
        kept, lengths = without_gaps(series)
        seen = kept.mask > 0
        values = self.scaling(kept.values.to(like).where(seen, like))
        if not values.isfinite().all():
            bad = int((~values.isfinite()).flatten(1).any(1).nonzero()[0])
            raise InputError(f"history has a value that is not finite in series {bad}: mask it")
        start = kept.times[:, 0].double()
        times = ((kept.times.double() - start[:, None]) / self.unit.double()).to(like.dtype)
        return History(start, times, values, seen.to(like.dtype), lengths)

    def _history_and_times(self, history: Series, at: Any) -> tuple[History, Tensor]:
        known = self._history(history)
        times = to_tensor("at", at).to(known.start)
        times = times.expand(len(known.start), -1) if times.ndim == 1 else times
        self._check_rows("at", times, known)
        return known, self._relative("at", times, known, torch.ones_like(times, dtype=torch.bool))

    def _relative(self, name: str, times: Tensor, history: History, counts: Tensor) -> Tensor:
        """Return times (B, T) since the start of each series in the unit of the model; 0 for those that do not count.

        The difference is taken in float64: days since 1970 in float32 lose hours.
        """
        times = times.to(history.start).where(counts.to(history.start.device), history.start[:, None])
        early = ((times < history.start[:, None]) | ~times.isfinite()).nonzero()
        if len(early):
            i, j = early[0].tolist()
            start = float(history.start[i])
            raise InputError(
                f"{name} has the time {times[i, j]:.15g} in series {i}, whose history begins at {start:.15g}: pass "
                "finite times from there on"
            )
        return ((times - history.start[:, None]) / self.unit.double()).to(history.times.dtype)

    def _check_rows(self, name: str, times: Tensor, history: History) -> None:
        if times.ndim != 2 or len(times) != len(history.start) or times.shape[1] == 0:
            raise InputError(
                f"{name} has times of shape {tuple(times.shape)} for {len(history.start)} series: pass (T,) or "
                f"({len(history.start)}, T)"
            )

    def _check(self, name: str, series: Any) -> None:
        """Raise an :class:`InputError` unless ``series`` is a batch of series that fits the model."""
        if not isinstance(series, Series):
            raise InputError(f"{name} of type {type(series).__name__} is not a Series: make one by pad(...)")
        times, values, mask = series
        if values.ndim != 3 or values.shape[2] != self.features or mask.shape != values.shape:
            raise InputError(
                f"{name} has values of shape {tuple(values.shape)} and a mask of shape {tuple(mask.shape)}: pass "
                f"(B, T, {self.features})"
            )
        if times.shape != values.shape[:2]:
            raise InputError(f"{name} has times of shape {tuple(times.shape)}: pass {tuple(values.shape[:2])}")
        late = (times.diff(dim=1) < 0).nonzero()
        if len(late):
            i, j = late[0].tolist()
            raise InputError(
                f"{name} has the time {times[i, j + 1]:.15g} after {times[i, j]:.15g} in series {i}: sort its times"
            )

    @override
    def extra_repr(self) -> str:
        return f"features={self.features}, unit={self.unit.item() if not self.unit.is_meta else '?'}"


def series_model(
    features: int, *, data: Series | None = None, config: SeriesConfig | None = None, **fields: Any
) -> SeriesModel:
    """Build a model of time series from its description.

    Args:
        features: number D of features of an observation.
        data: series whose mean, scale and unit of time the model takes, stored with it.
        config: the description.
        fields: fields of :class:`SeriesConfig`, in place of ``config``.

    Example:
        >>> from anode.time_series import pad
        >>> t = torch.linspace(0, 10, 50)
        >>> waves = pad([(t, torch.stack([(t + shift).sin(), (t + shift).cos()], 1)) for shift in range(3)])
        >>> model = series_model(2, data=waves, kind="anode", extra=1)
        >>> model.loss(waves, waves).shape, model.forecast(waves, at=[10.5, 11.0]).mean.shape
        (torch.Size([]), torch.Size([3, 2, 2]))
    """
    model = SeriesModel(config_of(SeriesConfig, config, fields), whole_number("features", features))
    return model if data is None else model.fit_units(data)


def _paths(config: SeriesConfig, features: int) -> SolvedPaths | FilteredPaths:
    """Build the paths of a description, with their field."""
    calendar = 2 * len(config.periods)

    def field(dim: int, context: int = 0) -> MLPField:
        still = config.kind in ("node", "anode", "second-order")  # at first, so that the observation does not run away
        return MLPField(dim, config.hidden, config.activation, "none", context + calendar, zero_init=still)

    def timed(inner: Any) -> Any:
        return CalendarField(inner, config.periods) if calendar else inner

    if config.kind == "ode-rnn":
        return FilteredPaths(features, config.latent, timed(field(config.latent)), config.solver)
    if config.kind == "latent":
        encoder = BackwardGRU(features, config.encoder)
        start: Any = PosteriorStart(config.latent, config.extra, encoder)
        return SolvedPaths(start, timed(field(config.latent + config.extra)), config.solver)
    encoder = BackwardGRU(features, config.encoder) if config.start == "encoded" else None
    if config.kind == "second-order":
        motion = SecondOrderField(field(features, features))
        return SolvedPaths(ObservedStart(features, features, encoder), timed(motion), config.solver)
    start = ObservedStart(features, config.extra, encoder)
    return SolvedPaths(start, timed(field(features + config.extra)), config.solver)


def _time_unit(times: Tensor, values: Tensor, seen: Tensor) -> float:
    """Return the mean length of the shortest lag at which standardised values (B, T, D) differ by 1."""
    unit, lag = 1.0, 1
    while lag < times.shape[1]:
        both = seen[:, lag:] & seen[:, :-lag]
        lengths = (times[:, lag:] - times[:, :-lag])[both.any(-1)]
        if len(lengths) and float(lengths.mean()) > 0:
            unit = float(lengths.mean())
            if float((values[:, lag:] - values[:, :-lag])[both].square().mean()) >= 1:
                break
        lag *= 2
    return unit
