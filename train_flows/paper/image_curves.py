"""Figures 10 and 11: losses, evaluations and accuracies of ANODEs on images, by the number of extra channels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from train_flows.paper import image_figures
from train_flows.paper.outcomes import Outcome
from train_flows.paper.report import AttemptInSittings, Report, curves, mean, of, ratio, report, shared
from train_flows.paper.scale import FAMILIES, Scale, family

DATA = ("mnist", "cifar10")
EXCESSIVE = 100  # channels, on grey images
EXTRAS = (0, 5, 10, EXCESSIVE, 1, 2)  # the most telling first
PUBLISHED = {
    "mnist": "p=10 has a loss in about 10 times fewer iterations",
    "cifar10": "p=10 has a loss in about 5 times fewer iterations, and 0.8 at about 50 evaluations instead of 100",
}
PANELS = (("loss",), ("nfe_forward",), ("nfe_forward", "loss"), ("nfe_forward", "test_accuracy"))


def run(attempt_all: AttemptInSittings, scale: Scale, data: Sequence[str]) -> Report:
    """Train networks that differ by their extra channels alone."""
    trials = [
        scale.trial(f"p={extra}", each, scale.conv(each, extra)) for extra in EXTRAS for each in _for(extra, data)
    ]
    outcomes = attempt_all(trials)
    models = [f"p={extra}" for extra in sorted(EXTRAS)]
    return report(outcomes, partial(image_figures.rows, outcomes, PANELS, models), _findings(outcomes, data))


def _for(extra: int, data: Sequence[str]) -> list[str]:
    """The sets that are augmented by so many channels."""
    return [each for each in data if extra != EXCESSIVE or FAMILIES[family(each)].shape[0] == 1]


def _findings(outcomes: Sequence[Outcome], data: Sequence[str]) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for each in data:
        if family(each) in PUBLISHED:
            findings[f"published, full size of {family(each)}"] = PUBLISHED[family(each)]
        for extra in EXTRAS[1:]:
            augmented, plain = shared(of(outcomes, f"p={extra}", each), of(outcomes, "p=0", each))
            if not plain:
                continue
            reached = _reached(augmented, plain)
            until = f"{'never' if reached is None else reached} of {plain[0].trial.epochs}"
            then = None if reached is None else mean(augmented, "nfe_forward", reached) / mean(plain, "nfe_forward")
            findings[f"{each}, p={extra}: epochs until p=0's final loss"] = until
            findings[f"{each}, p={extra}: NFE at p=0's final loss over p=0's"] = then
            findings[f"{each}, p={extra}: NFE of the last epoch over p=0's"] = ratio(augmented, plain, "nfe_forward")
    return findings


def _reached(augmented: Sequence[Outcome], plain: Sequence[Outcome]) -> int | None:
    """The first epoch whose mean loss is not above the final one of others."""
    below = np.flatnonzero(curves(augmented, "loss").mean(0) <= mean(plain, "loss"))
    return int(below[0]) if len(below) else None
