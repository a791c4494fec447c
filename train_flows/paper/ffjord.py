"""How long the default recipe takes to the likelihood that FFJORD's recipe has at its end.

Both are trained on the same samples and validated on the same others, each in a process of one thread. FFJORD's recipe
is that of its published code: three hidden layers of 64 units, concat-squash, tanh, the exact trace by pull-backs, the
adjoint of torchdiffeq, Adam at 1e-3, batches of 512, here 2,500 iterations. Seconds are those of training alone, until
the validation NLL is as low as FFJORD's at its end and stays there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from train_flows import recipes
from train_flows.paper.density_trials import DensityTrial, attempt, checked
from train_flows.paper.outcomes import Outcome
from train_flows.paper.report import AttemptInSittings, Report, mean, of, report, shared

__all__ = ["DATA", "attempt", "run"]

DATA = ("8gaussians", "checkerboard", "2spirals")
OURS, THEIRS = "default", "FFJORD"
OPTIONS: dict[str, dict[str, Any]] = {
    THEIRS: {**recipes.FFJORD, "validate_every": 250},
    OURS: {"validate_every": 25},
}


def run(attempt_all: AttemptInSittings, quick: bool, data: Sequence[str]) -> Report:
    """Train by both recipes on every density."""
    trials = [DensityTrial(name, each, options) for each in data for name, options in OPTIONS.items()]
    outcomes = attempt_all(checked(trials, quick))
    return report(outcomes, partial(_figure, outcomes, data), _findings(outcomes, data))


def _findings(outcomes: Sequence[Outcome], data: Sequence[str]) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for each in data:
        ours, theirs = shared(of(outcomes, OURS, each), of(outcomes, THEIRS, each))
        if ours:
            shares = [_seconds_to(a, b.records[-1]["nll"]) / b.records[-1]["seconds"] for a, b in _pairs(ours, theirs)]
            findings |= {
                f"{each}: time to FFJORD's final NLL over FFJORD's": float(np.mean(shares)),
                f"{each}: final test NLL, {OURS}": mean(ours, "test_nll"),
                f"{each}: final test NLL, {THEIRS}": mean(theirs, "test_nll"),
                f"{each}: seconds, {OURS}": mean(ours, "seconds"),
                f"{each}: seconds, {THEIRS}": mean(theirs, "seconds"),
                f"{each}: NFE of log_prob, {OURS} / {THEIRS}": mean(ours, "nfe_log_prob")
                / mean(theirs, "nfe_log_prob"),
            }
    return findings


def _pairs(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> list[tuple[Outcome, Outcome]]:
    """Outcomes of the same seed."""
    return [(a, b) for a in ours for b in theirs if a.seed == b.seed]


def _seconds_to(outcome: Outcome, nll: float) -> float:
    """Seconds until a validation NLL is reached for good; infinite where it never is."""
    above = [i for i, record in enumerate(outcome.records) if record["nll"] > nll]
    first = 1 + max(above, default=-1)
    return outcome.records[first]["seconds"] if first < len(outcome.records) else math.inf


def _figure(outcomes: Sequence[Outcome], data: Sequence[str]) -> Figure:
    figure = Figure(figsize=(4.4 * len(data), 3.6), layout="constrained")
    for axes, each in zip(figure.subplots(1, len(data), squeeze=False)[0], data, strict=True):
        for i, name in enumerate(OPTIONS):
            for seed, outcome in enumerate(of(outcomes, name, each)):
                seconds, values = ([record[key] for record in outcome.records[1:]] for key in ("seconds", "nll"))
                axes.plot(seconds, values, color=f"C{i}", label=None if seed else name)
        axes.set(title=each, xlabel="seconds of training", ylabel="validation NLL", xscale="log")
        axes.legend()
    return figure
