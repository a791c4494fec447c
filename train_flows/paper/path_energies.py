"""What a penalty on the acceleration of paths does to evaluations and likelihood of continuous flows.

Every weight is trained with every seed, alike but for the penalty; the reported one is chosen on validation data: that
of the fewest evaluations whose mean validation NLL is at most 0.02 nats above that without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from train_flows.paper.density_trials import DensityTrial, attempt, checked
from train_flows.paper.outcomes import Outcome
from train_flows.paper.report import AttemptInSittings, Report, mean, of, ratio, report, shared

__all__ = ["DATA", "attempt", "run"]

DATA = ("separated-8gaussians", "checkerboard", "annulus")
WEIGHTS = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
ALLOWED = 0.02  # nats of validation NLL
STEPS = 2000
OPTIONS: dict[str, Any] = {"steps": STEPS, "validate_every": STEPS // 20}


def run(attempt_all: AttemptInSittings, quick: bool, data: Sequence[str]) -> Report:
    """Train with every weight on every density."""
    trials = [
        DensityTrial(_name(weight), each, {**OPTIONS, "acceleration": weight, "energies": ("acceleration", "kinetic")})
        for each in data
        for weight in WEIGHTS
    ]
    outcomes = attempt_all(checked(trials, quick))
    return report(outcomes, partial(_figure, outcomes, data), _findings(outcomes, data))


def _name(weight: float) -> str:
    return f"acceleration {weight:g}"


def _findings(outcomes: Sequence[Outcome], data: Sequence[str]) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    ratios = []
    for each in data:
        groups = {weight: of(outcomes, _name(weight), each) for weight in WEIGHTS}
        weight = _chosen(groups)
        if weight is None:
            continue
        plain, penalised = shared(groups[0.0], groups[weight])
        ratios.append(ratio(penalised, plain, "nfe_log_prob"))
        findings |= {
            f"{each}: chosen weight": weight,
            f"{each}: NFE of log_prob, with / without": ratios[-1],
            f"{each}: NFE of sampling, with / without": ratio(penalised, plain, "nfe_sample"),
            f"{each}: test NLL, with - without": mean(penalised, "test_nll") - mean(plain, "test_nll"),
            f"{each}: validation NLL gained by the last quarter of training, without": _still_gained(plain),
        }
    if len(ratios) == len(data):
        findings["NFE of log_prob, with / without, mean"] = float(np.mean(ratios))
    return findings


def _chosen(groups: dict[float, list[Outcome]]) -> float | None:
    """The weight of the fewest evaluations within what is allowed; None where there is nothing to compare."""
    good = [weight for weight, outcomes in groups.items() if any(o.status == "success" for o in outcomes)]
    if 0.0 not in good:
        return None

    def lost(weight: float) -> float:
        penalised, plain = shared(groups[weight], groups[0.0])
        return mean(penalised, "validation_nll") - mean(plain, "validation_nll") if plain else math.inf

    allowed = [weight for weight in good if weight and lost(weight) <= ALLOWED]
    return min(allowed, key=lambda weight: mean(groups[weight], "nfe_validation"), default=None)


def _still_gained(outcomes: Sequence[Outcome]) -> float:
    """How much the best validation NLL fell in the last quarter of the records, mean over seeds."""
    gains = []
    for outcome in outcomes:
        values = [record["nll"] for record in outcome.records]
        gains.append(min(values[: 1 + 3 * (len(values) - 1) // 4]) - min(values))
    return float(np.mean(gains))


def _figure(outcomes: Sequence[Outcome], data: Sequence[str]) -> Figure:
    figure = Figure(figsize=(4.2 * len(data), 6.6), layout="constrained")
    axes = figure.subplots(2, len(data), squeeze=False)
    for column, each in enumerate(data):
        for i, weight in enumerate(WEIGHTS):
            for seed, outcome in enumerate(o for o in of(outcomes, _name(weight), each) if o.status == "success"):
                label, last = None if seed else f"{weight:g}", outcome.records[-1]
                axes[0, column].plot(last["nfe_log_prob"], last["test_nll"], "o", color=f"C{i}", label=label)
                steps, costs = ([record[name] for record in outcome.records] for name in ("step", "nfe_log_prob"))
                axes[1, column].plot(steps, costs, color=f"C{i}", alpha=0.7, label=label)
        axes[0, column].set(title=each, xlabel="evaluations of log_prob", ylabel="test NLL")
        axes[1, column].set(xlabel="step", ylabel="evaluations of log_prob, validation")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), title="weight", loc="outside right upper")
    return figure
