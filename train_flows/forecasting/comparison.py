"""Forecasts of the test part by a model and by baselines, their scores, and a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from anode import count_evals
from anode.time_series import Series, SeriesModel, pad
from train_flows.data.dataset import abbreviate
from train_flows.evaluation import wording
from train_flows.forecasting import baselines, forecast_scores
from train_flows.forecasting.series_data import Example, SeriesData, TimeSeries

SAMPLES = 100  # of the latent state of a forecast
CELLS = 2_000_000  # values of all samples that are forecast together
PARTS = ("interpolation", "extrapolation")
SHOWN_FEATURES = 8  # in lines of the table
COLUMNS = {"mse": "MSE", "rmse": "RMSE", "mae": "MAE", "nll": "NLL", "crps": "CRPS"}
COLUMNS |= {"coverage_50": "in 50%", "coverage_90": "in 90%"}


@dataclass(frozen=True, eq=False)
class Forecast:
    """Forecasts of some examples.

    Attributes:
        distribution: of batch shape (B, T, D), at the times of the target.
        target: values to compare with, those inside the history first.
        inside: True for times within the history, (B, T).
        truth: values without noise (B, T, D), float64, NaN if unknown.
    """

    distribution: Distribution
    target: Series
    inside: Tensor
    truth: Tensor


def to_series(series: Sequence[TimeSeries], model: torch.nn.Module | None = None) -> Series:
    """Return series as a batch, on the device and in the precision of a model."""
    batch = pad([(one.times, one.values) for one in series])
    like = None if model is None else next(model.parameters())
    return batch if like is None else Series(batch.times.to(like.device), *(x.to(like) for x in batch[1:]))


def forecasts(model: SeriesModel, examples: Sequence[Example], samples: int = SAMPLES) -> Iterator[Forecast]:
    """Yield the forecasts of examples, some at a time."""
    if not examples:
        return
    features = examples[0].after.values.shape[1]
    longest = max(len(each.inside) + len(each.after) for each in examples)
    size = max(1, CELLS // (longest * features * samples))
    for i in range(0, len(examples), size):
        yield _forecast(model, examples[i : i + size], samples)


@torch.no_grad()
def _forecast(model: SeriesModel, examples: Sequence[Example], samples: int) -> Forecast:
    history = to_series([each.history for each in examples], model)
    target = to_series([joined(each.inside, each.after) for each in examples], model)
    inside = torch.zeros(target.times.shape, dtype=torch.bool)
    truth = torch.full(target.values.shape, torch.nan, dtype=torch.float64)
    for i, each in enumerate(examples):
        inside[i, : len(each.inside)] = True
        if each.inside.truth is not None and each.after.truth is not None:
            known = np.concatenate([each.inside.truth, each.after.truth])
            truth[i, : len(known)] = torch.from_numpy(known)
    return Forecast(model.forecast(history, target.times, samples), target, inside, truth)


def joined(first: TimeSeries, second: TimeSeries) -> TimeSeries:
    """Return observations of a series followed by later ones."""
    times, values = (np.concatenate([getattr(part, name) for part in (first, second)]) for name in ("times", "values"))
    return TimeSeries(first.name, times, values)


def compare(model: SeriesModel, data: SeriesData) -> tuple[dict[str, Any], list[str]]:
    """Score a model and the baselines on the test part.

    Returns:
        For ``extrapolation``, and for ``interpolation`` if observations were hidden, the scores by forecaster, the
        model's by ``model``; and the evaluations of the field for each forecast. Notes on baselines left out.
    """
    scores: dict[str, list[dict[str, Tensor]]] = {part: [] for part in PARTS}
    evaluations = []
    for found in _counted(model, data.test, evaluations):
        for part, flags in _parts(found):
            scores[part].append(_with_truth(found, flags))
    names, notes = baselines.forecasters(data)
    figures: dict[str, Any] = {}
    for part in PARTS:
        if not scores[part]:
            continue
        rivals = names if part == PARTS[1] else {"linear interpolation": baselines.linear_interpolation}
        figures[part] = {"model": _summary(scores[part], data)}
        for name, forecaster in rivals.items():
            figures[part][name] = _summary([_baseline_scores(data, forecaster, part == PARTS[0])], data)
    return {"scores": figures, "nfe": float(np.mean(evaluations))}, notes


def validation_scores(model: SeriesModel, data: SeriesData, samples: int) -> dict[str, float]:
    """Return NLL, RMSE and CRPS of all forecasts of the validation part, in units of standard deviations."""
    parts = [_with_truth(one, one.target.mask.cpu() > 0) for one in forecasts(model, data.validation, samples)]
    if not parts:
        return {}
    found = _summary(parts, data)
    return {"nll": found["nll"], "validation_rmse": found["rmse"], "crps": found["crps"]}


def _counted(model: SeriesModel, examples: Sequence[Example], evaluations: list[int]) -> Iterator[Forecast]:
    """Yield forecasts, and note the evaluations of each batch."""
    found = forecasts(model, examples)
    while True:
        with count_evals(model) as nfe:
            one = next(found, None)
        if one is None:
            return
        evaluations.append(nfe.forward)
        yield one


def _parts(found: Forecast) -> Iterator[tuple[str, Tensor]]:
    """Yield the parts that have observed values, and flag the values (B, T, D)."""
    observed, inside = found.target.mask.cpu() > 0, found.inside.unsqueeze(-1)
    parts = zip(PARTS, (observed & inside, observed & ~inside), strict=True)
    yield from ((name, flags) for name, flags in parts if flags.any())


def _with_truth(found: Forecast, flags: Tensor) -> dict[str, Tensor]:
    """Return the scores of flagged values, with squared errors from the truth without noise."""
    flags = flags.to(found.target.mask.device)
    scores = forecast_scores.values_scores(found.distribution, found.target.values, flags)
    errors = (found.distribution.mean.double() - found.truth.to(flags.device))[flags].square()
    return {name: values.cpu() for name, values in (scores | {"mse_truth": errors}).items()}


def _baseline_scores(data: SeriesData, forecaster: baselines.Forecaster, inside: bool) -> dict[str, Tensor]:
    """Return the scores of the values of the test part by a baseline, normal with the deviation of its errors."""
    spread, predicted, observed, truth = baselines.spread(data, forecaster, inside), [], [], []
    for each in data.test:
        part = each.inside if inside else each.after
        if len(part):
            predicted.append(baselines.predict(data, forecaster, each, part))
            observed.append(part.values)
            truth.append(np.full_like(part.values, np.nan) if part.truth is None else part.truth)
    mean, y, true = (torch.from_numpy(np.concatenate(rows)) for rows in (predicted, observed, truth))
    flags = ~y.isnan()
    normal = Normal(mean, torch.from_numpy(spread).expand_as(mean))
    scores = forecast_scores.values_scores(normal, y, flags)
    return scores | {"mse_truth": (mean - true)[flags].square()}


def _summary(parts: Sequence[dict[str, Tensor]], data: SeriesData) -> dict[str, Any]:
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    errors = found.pop("mse_truth")
    summary = forecast_scores.summarise(found, data.columns, data.scale)
    if errors.isfinite().any():
        summary["rmse_truth"] = float(errors[errors.isfinite()].mean().sqrt())  # of all features, in their units
    return summary


def table(figures: Mapping[str, Any], data: SeriesData) -> str:
    """Return scores as lines to read: by forecaster, and the model's by feature."""
    said, alone = [], len(data.columns) == 1
    unit = f"in units of {data.columns[0]}" if alone else "in standard deviations of the training values"
    for part, found in figures["scores"].items():
        where = f"{found['model']['values']:,} values {'after' if part == PARTS[1] else 'hidden in'} the histories"
        rows = scores_by_name(found)
        width = max(18, *map(len, rows)) + 1
        said += [f"{part}, {where}, {unit}", _line("", list(COLUMNS.values()), width)]
        said += [_line(name, [f"{one[score]:.4g}" for score in COLUMNS], width) for name, one in rows.items()]
        features = [] if alone else list(found["model"]["features"].items())
        if features:
            said.append("the model by feature, in its units")
        for name, one in features[:SHOWN_FEATURES]:
            said.append(_line(abbreviate([name]), [f"{one[score]:.4g}" for score in COLUMNS], width))
        if len(features) > SHOWN_FEATURES:
            said.append(f"({SHOWN_FEATURES} of {len(features)} features; result.json has all)")
        if "rmse_truth" in found["model"]:
            truth = ", ".join(f"{name} {one['rmse_truth']:.4f}" for name, one in found.items())
            said.append(wording.lines([("RMSE of the truth", f"{truth} (values without noise, in their units)")]))
    said.append(wording.lines([("NFE", f"{figures['nfe']:.0f} a forecast")]))
    return "\n".join(said)


def verdict(figures: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each part in which the model does not beat a baseline by its CRPS."""
    said = []
    for part, found in figures["scores"].items():
        crps = {name: one["crps"] for name, one in scores_by_name(found).items()}
        own, (best, least) = crps.pop("model"), min(crps.items(), key=lambda pair: pair[1])
        if least <= own:
            said.append(f"{part}: the model does not beat {best}: its CRPS is {own:.4g}, that of {best} {least:.4g}")
    return said


def scores_by_name(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of each forecaster: of all features in standard deviations, of a single one in its unit."""
    alone = len(found["model"]["features"]) == 1
    return {name: next(iter(one["features"].values())) if alone else one for name, one in found.items()}


def _line(name: str, cells: Sequence[str], width: int) -> str:
    return f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells)
