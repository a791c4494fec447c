"""The two settings of ``augmented-density``, chosen for each data set on its validation part.

The number of components is that of the categorical flow that samples with the fewest evaluations at equal likelihood,
beside the plain flow, among those that come to be as good as that (of the best, where none does): with many components
the mixture alone can stop short of it. The weight of the penalty on acceleration, the same for all variants, is that of
the plain flow's fewest evaluations whose validation NLL is at most 0.02 nats above that without; the smallest, where
all cost more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cnf import Density
from train_flows.data import Dataset
from train_flows.paper import augmented_density, density_trials
from train_flows.paper.augmented_density import METRICS, PLAIN, matched, mixture_of_flows, plain_trial
from train_flows.paper.costs import costs
from train_flows.paper.density_trials import DensityTrial, load
from train_flows.paper.equal_nll import compared
from train_flows.paper.outcomes import Outcome
from train_flows.paper.report import AttemptInSittings, Report, mean, of, report, shared

__all__ = ["DATA", "attempt", "run"]

DATA = augmented_density.DATA
COMPONENTS = (4, 8, 16, 32)
WEIGHTS = (1e-4, 1e-3, 1e-2, 1e-1)
ALLOWED = 0.02  # nats
METRIC = METRICS[-1]


def measure(model: Density, dataset: Dataset) -> dict[str, float]:
    """The costs on the validation part."""
    return costs(model, dataclasses.replace(dataset, test=dataset.validation))


attempt = partial(density_trials.attempt, measure=measure)


def run(attempt_all: AttemptInSittings, quick: bool, data: Sequence[str]) -> Report:
    """Train plain flows with every weight, and mixtures of every number of components."""
    outcomes = attempt_all([trial for each in data for trial in _trials(each, quick, attempt_all.place.data_root)])
    return report(outcomes, partial(_figure, outcomes, data), _findings(outcomes, data))


def _trials(data: str, quick: bool, data_root: str) -> list[DensityTrial]:
    plain = plain_trial(data, quick)
    dataset = load(plain, 0, data_root)
    tried = {_penalised(weight): {"acceleration": weight} for weight in (0.0, *WEIGHTS)}
    for k in COMPONENTS:
        options = {"augmentation": "categorical", "extra": k, **mixture_of_flows(data), "acceleration": 0.0}
        tried[_mixed(k)] = matched(plain, options, dataset)
    return [dataclasses.replace(plain, name=name, options=plain.options | more) for name, more in tried.items()]


def _penalised(weight: float) -> str:
    return f"{PLAIN}, acceleration {weight:g}"


def _mixed(k: int) -> str:
    return f"categorical K={k}"


def _findings(outcomes: Sequence[Outcome], data: Sequence[str]) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for each in data:
        plain = of(outcomes, _penalised(0.0), each)
        ratios, behind = {}, {}
        for k in COMPONENTS:
            pairs = list(zip(*shared(of(outcomes, _mixed(k), each), plain), strict=True))
            if pairs:
                ratios[k] = compared(pairs, METRIC)["ratio"]
                behind[k] = max(0.0, float(np.mean([_best(mixed) - _best(flow) for mixed, flow in pairs])))
                findings[f"{each}: {_mixed(k)} / {PLAIN}, {METRIC}"] = ratios[k]
                findings[f"{each}: {_mixed(k)}, validation NLL behind {PLAIN}"] = behind[k]
        if ratios:
            findings[f"{each}: components"] = min(ratios, key=lambda k: (behind[k], ratios[k]))
        findings |= _weights(each, outcomes)
    return findings


def _best(outcome: Outcome) -> float:
    """The best validation NLL of a training."""
    return min(record["nll"] for record in outcome.records)


def _weights(data: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the weights of the penalty come to, for the seeds that succeeded with all of them, and the one chosen."""
    weights = (0.0, *WEIGHTS)
    groups = shared(*(of(outcomes, _penalised(weight), data) for weight in weights))
    nll, nfe = (
        {weight: mean(found, metric) for weight, found in zip(weights, groups, strict=True)}
        for metric in ("validation_nll", "nfe_validation")
    )
    findings: dict[str, Any] = {}
    for weight in weights:
        findings[f"{data}: {_penalised(weight)}, validation NLL"] = nll[weight]
        findings[f"{data}: {_penalised(weight)}, NFE of log_prob"] = nfe[weight]
    good = [weight for weight in WEIGHTS if nll[weight] <= nll[0.0] + ALLOWED]
    none = math.nan if math.isnan(nll[0.0]) else min(WEIGHTS)
    findings[f"{data}: acceleration"] = min(good, key=lambda weight: nfe[weight], default=none)
    return findings


def _figure(outcomes: Sequence[Outcome], data: Sequence[str]) -> Figure:
    figure = Figure(figsize=(4.2 * len(data), 3.4), layout="constrained")
    for axes, each in zip(figure.subplots(1, len(data), squeeze=False)[0], data, strict=True):
        names = [_penalised(0.0), *(_mixed(k) for k in COMPONENTS)]
        augmented_density.draw_curves(axes, {name: of(outcomes, name, each) for name in names})
        axes.set(title=each, xlabel="validation NLL", ylabel="evaluations of sampling, 1e-7")
        axes.legend(fontsize=7)
    return figure
