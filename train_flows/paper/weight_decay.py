"""Weight decay with and without augmentation: neither figure nor table of it is published."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from train_flows.paper import image_figures
from train_flows.paper.outcomes import Outcome
from train_flows.paper.report import AttemptInSittings, Report, mean, of, report, spread
from train_flows.paper.scale import FAMILIES, Scale, family

DATA = ("mnist",)
DECAYS = (0.0, 1e-3, 1e-2, 1e-4)  # the most telling first
PANELS = (("loss",), ("test_accuracy",), ("nfe_forward",), ("nfe_forward", "test_accuracy"))


def run(attempt_all: AttemptInSittings, scale: Scale, data: Sequence[str]) -> Report:
    """Train NODE and ANODE with every decay."""
    trials = [
        scale.trial(_name(extra, decay), each, scale.conv(each, extra), weight_decay=decay)
        for decay in DECAYS
        for each in data
        for extra in _extras(each)
    ]
    outcomes = attempt_all(trials)
    return report(outcomes, partial(image_figures.rows, outcomes, PANELS), _findings(outcomes, data))


def _extras(data: str) -> tuple[int, int]:
    return 0, FAMILIES[family(data)].extra


def _name(extra: int, decay: float) -> str:
    return f"p={extra}, decay {decay:g}"


def _findings(outcomes: Sequence[Outcome], data: Sequence[str]) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for each in data:
        for extra in _extras(each):
            for decay in sorted(DECAYS):
                group = of(outcomes, _name(extra, decay), each)
                findings[f"{each}, {_name(extra, decay)}: test accuracy in %"] = spread(group, "test_accuracy", 100)
                findings[f"{each}, {_name(extra, decay)}: NFE of the last epoch"] = mean(group, "nfe_forward")
    return findings
