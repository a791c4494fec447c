"""What optimal transport within a batch does to the evaluations of flows trained by flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from train_flows.paper.density_trials import DensityTrial, attempt, checked
from train_flows.paper.outcomes import Outcome
from train_flows.paper.report import AttemptInSittings, Report, mean, of, ratio, report, shared

__all__ = ["DATA", "attempt", "run"]

DATA = ("8gaussians", "moons")
COUPLINGS = ("independent", "optimal_transport")
OPTIONS: dict[str, Any] = {"objective": "flow-matching", "steps": 4000, "validate_every": 200, "lr": 5e-3, "ema": 0.99}


def run(attempt_all: AttemptInSittings, quick: bool, data: Sequence[str]) -> Report:
    """Train with both couplings on every density."""
    trials = [
        DensityTrial(coupling, each, {**OPTIONS, "coupling": coupling}) for each in data for coupling in COUPLINGS
    ]
    outcomes = attempt_all(checked(trials, quick))
    return report(outcomes, partial(_figure, outcomes, data), _findings(outcomes, data))


def _findings(outcomes: Sequence[Outcome], data: Sequence[str]) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for each in data:
        without, coupled = shared(*(of(outcomes, coupling, each) for coupling in COUPLINGS))
        if without:
            findings |= {
                f"{each}: NFE of sampling, coupled / independent": ratio(coupled, without, "nfe_sample"),
                f"{each}: NFE of log_prob, coupled / independent": ratio(coupled, without, "nfe_log_prob"),
                f"{each}: seconds of training, coupled / independent": ratio(coupled, without, "seconds"),
                f"{each}: test NLL, coupled - independent": mean(coupled, "test_nll") - mean(without, "test_nll"),
            }
    return findings


def _figure(outcomes: Sequence[Outcome], data: Sequence[str]) -> Figure:
    figure = Figure(figsize=(4.6 * len(data), 3.6), layout="constrained")
    for axes, each in zip(figure.subplots(1, len(data), squeeze=False)[0], data, strict=True):
        for i, coupling in enumerate(COUPLINGS):
            for seed, outcome in enumerate(o for o in of(outcomes, coupling, each) if o.status == "success"):
                last = outcome.records[-1]
                label = None if seed else coupling.replace("_", " ")
                axes.plot(last["nfe_sample"], last["test_nll"], "o", color=f"C{i}", alpha=0.7, label=label)
        axes.set(title=each, xlabel="evaluations of sampling", ylabel="test NLL")
        axes.legend()
    return figure
