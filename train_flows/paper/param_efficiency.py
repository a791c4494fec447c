"""Accuracy for parameters: NODE and ANODE of equal size, from small to that of table 1, which alone is published."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from train_flows.paper.outcomes import Outcome, Tried
from train_flows.paper.report import AttemptInSittings, Report, at_epoch, of, ratio, report, spread
from train_flows.paper.scale import Scale, parameters

DATA = ("mnist",)
FILTERS = (64, 16, 32)  # of the ANODE, the most telling first
METRICS = {"test_accuracy": "test accuracy", "loss": "training loss", "nfe_forward": "evaluations a solve"}


def run(attempt_all: AttemptInSittings, scale: Scale, data: Sequence[str]) -> Report:
    """Train pairs of several sizes."""
    trials = [
        scale.trial(f"{name}, k={model['filters']}", each, model)
        for filters in FILTERS
        for each in data
        for name, model in scale.pair(each, filters).items()
    ]
    outcomes = attempt_all(trials)
    return report(outcomes, partial(_figure, outcomes, scale), _findings(outcomes, scale, data))


def _size(scale: Scale, trial: Tried) -> int:
    return parameters(scale.shape(trial.data), trial.plain()["model"])


def _findings(outcomes: Sequence[Outcome], scale: Scale, data: Sequence[str]) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for each in data:
        for filters in sorted(FILTERS):
            sizes, accuracies, groups = [], [], []
            for name, model in scale.pair(each, filters).items():
                group = of(outcomes, f"{name}, k={model['filters']}", each)
                sizes.append(str(parameters(scale.shape(each), model)))
                accuracies.append(spread(group, "test_accuracy", 100))
                groups.append(group)
            pairs = f"{each}, NODE / ANODE of {' / '.join(sizes)} parameters"
            findings[f"{pairs}: test accuracy in %"] = " / ".join(accuracies)
            findings[f"{pairs}: NFE of the last epoch, ANODE / NODE"] = ratio(groups[1], groups[0], "nfe_forward")
    return findings


def _figure(outcomes: Sequence[Outcome], scale: Scale) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    kinds = dict.fromkeys((o.trial.data, o.trial.name.split(",")[0]) for o in outcomes)
    for axes, (metric, label) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        for i, (data, kind) in enumerate(kinds):
            group = [o for o in outcomes if (o.trial.data, o.trial.name.split(",")[0]) == (data, kind)]
            sizes = sorted({_size(scale, o.trial) for o in group})
            values = [at_epoch([o for o in group if _size(scale, o.trial) == size], metric) for size in sizes]
            for size, each in zip(sizes, values, strict=True):
                axes.scatter([size] * len(each), each, s=12, alpha=0.5, color=f"C{i}")
            means = [each.mean() if len(each) else float("nan") for each in values]
            axes.plot(sizes, means, color=f"C{i}", label=f"{kind}, {data}")
        axes.set(xlabel="parameters", ylabel=label)
        axes.legend()
    return figure
