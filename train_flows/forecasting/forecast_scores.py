"""Scores of forecasts: errors of the mean, likelihood, continuous ranked probability score, coverage of intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import scoringrules
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal, StudentT

scoringrules.register_backend("torch")
LEVELS = {"coverage_50": 0.5, "coverage_90": 0.9}
CRPS_SAMPLES = 1000  # of a distribution without a closed form
SAMPLED = 2000  # values whose samples are in memory together
PAIRS = 200_000  # of components of mixtures that are in memory together: more are slower
ERRORS = ("mse", "mae", "nll", "crps", *LEVELS)  # means over values


@torch.no_grad()
def values_scores(forecast: Distribution, y: Tensor, flags: Tensor) -> dict[str, Tensor]:
    """Return the scores of observed values, (N,) each, float64, and the ``feature`` of each.

        crps = integral (F(x) - [x >= y])^2 dx

    Args:
        forecast: of batch shape (B, T, D): normal, Student t (of :mod:`anode.time_series.predictive`), or a mixture of
            either.
        y: values (B, T, D).
        flags: True for those that are observed, (B, T, D).

    References:
        Gneiting, Raftery 2007, Strictly proper scoring rules, prediction, and estimation.
    """
    forecast, y, feature = select(forecast, flags), y[flags].double(), flags.nonzero()[:, -1]
    rank = forecast.cdf(y)
    error = forecast.mean.double() - y
    found = {"feature": feature, "mse": error.square(), "mae": error.abs(), "nll": -forecast.log_prob(y)}
    found["crps"] = crps(forecast, y)
    return found | {name: ((rank - 0.5).abs() <= level / 2).double() for name, level in LEVELS.items()}


def summarise(found: dict[str, Tensor], columns: list[str] | tuple[str, ...], scale: np.ndarray) -> dict[str, Any]:
    """Return mean scores: of each feature in its units, and of all values in units of the standard deviations.

    Args:
        found: scores of values, of :func:`values_scores`.
        columns: names of the D features.
        scale: standard deviations (D,) of the training values.
    """
    unit = torch.from_numpy(np.asarray(scale, dtype=np.float64))[found["feature"]]
    powers = {"mse": unit**2, "mae": unit, "crps": unit}
    standard = {name: found[name] / powers[name] if name in powers else found[name] for name in ERRORS}
    standard["nll"] = found["nll"] - unit.log()
    features = {}
    for j, column in enumerate(columns):
        own = found["feature"] == j
        if own.any():
            features[column] = _means({name: found[name][own] for name in ERRORS})
    return {"values": len(unit), **_means(standard), "features": features}


def _means(scores: dict[str, Tensor]) -> dict[str, float]:
    means = {name: float(values.mean()) for name, values in scores.items()}
    return {"mse": means.pop("mse"), "rmse": float(scores["mse"].mean().sqrt()), **means}


def select(forecast: Distribution, flags: Tensor) -> Distribution:
    """Return the distribution of flagged values, batch shape (N,), float64.

    Args:
        forecast: normal, Student t, or a mixture of either.
        flags: (B, T, D).
    """
    kind: Any = type(forecast)
    if not isinstance(forecast, MixtureSameFamily):
        return kind(**_parameters(forecast, flags))
    inner: Any = type(forecast.component_distribution)
    weights: Any = forecast.mixture_distribution.probs
    return MixtureSameFamily(
        Categorical(weights[flags].double()), inner(**_parameters(forecast.component_distribution, flags))
    )


def _parameters(forecast: Distribution, flags: Tensor) -> dict[str, Tensor]:
    return {name: getattr(forecast, name)[flags].double() for name in forecast.arg_constraints}


def crps(forecast: Distribution, y: Tensor) -> Tensor:
    """Return the continuous ranked probability score of values (N,).

    It is exact for a normal or Student t distribution and for a mixture of normal ones, otherwise the unbiased estimate
    from 1000 samples.
    """
    if isinstance(forecast, MixtureSameFamily) and isinstance(forecast.component_distribution, Normal):
        inner = forecast.component_distribution
        of_all: Any = (y, inner.loc, inner.scale, forecast.mixture_distribution.probs)
        size = max(1, PAIRS // inner.loc.shape[-1] ** 2)
        parts = zip(*(x.cpu().split(size) for x in of_all), strict=True)
        return torch.cat([scoringrules.crps_mixnorm(*part, backend="torch") for part in parts]).to(y)
    numbers = y.cpu().numpy()
    if isinstance(forecast, Normal):
        found = scoringrules.crps_normal(numbers, *_arrays(forecast.loc, forecast.scale), backend="numpy")
    elif isinstance(forecast, StudentT):
        found = scoringrules.crps_t(numbers, *_arrays(forecast.df, forecast.loc, forecast.scale), backend="numpy")
    else:
        rows = torch.arange(len(y), device=y.device).split(SAMPLED)
        found = np.concatenate([_sampled_crps(forecast, y, some) for some in rows])
    return torch.from_numpy(np.asarray(found, dtype=np.float64)).to(y)


def _sampled_crps(mixture: Any, y: Tensor, rows: Tensor) -> np.ndarray:
    """Return the estimate for some of the values, from samples of the components that are drawn."""
    inner, probs = mixture.component_distribution, mixture.mixture_distribution.probs
    drawn, kind = Categorical(probs[rows]).sample((CRPS_SAMPLES,)).T, type(inner)
    samples = kind(**{name: getattr(inner, name)[rows].gather(1, drawn) for name in inner.arg_constraints}).sample()
    numbers = y[rows].cpu().numpy()
    return scoringrules.crps_ensemble(numbers, samples.cpu().numpy(), estimator="pwm", backend="numpy")  # unbiased


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.cpu().numpy() for tensor in tensors]
