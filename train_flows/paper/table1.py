"""Table 1 and figures 12 and 14: test accuracy of NODE and ANODE with as many parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from train_flows.paper import image_figures
from train_flows.paper.outcomes import Outcome
from train_flows.paper.report import AttemptInSittings, Report, of, ratio, report, spread
from train_flows.paper.scale import Scale, family, parameters

DATA = ("mnist", "cifar10", "svhn")
PANELS = (("test_accuracy",), ("test_loss",), ("loss",), ("nfe_forward",))
PUBLISHED = {  # accuracy in per cent: by the paper, and by its reproduction for the NeurIPS 2019 challenge
    ("mnist", "NODE"): "96.4 +- 0.5, reproduced 95.57 +- 0.32",
    ("mnist", "ANODE"): "98.2 +- 0.1, reproduced 97.25 +- 0.54",
    ("cifar10", "NODE"): "53.7 +- 0.2, reproduced 51.72 +- 0.57",
    ("cifar10", "ANODE"): "60.6 +- 0.4, reproduced 52.42 +- 1.19",
    ("svhn", "NODE"): "81.0 +- 0.6",
    ("svhn", "ANODE"): "83.5 +- 0.5",
}


def run(attempt_all: AttemptInSittings, scale: Scale, data: Sequence[str]) -> Report:
    """Train both on every set of images."""
    trials = [scale.trial(name, each, model) for each in data for name, model in scale.pair(each).items()]
    outcomes = attempt_all(trials)
    return report(outcomes, partial(image_figures.rows, outcomes, PANELS), _findings(outcomes, scale, data))


def _findings(outcomes: Sequence[Outcome], scale: Scale, data: Sequence[str]) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for each in data:
        pair = scale.pair(each)
        for name, model in pair.items():
            published = PUBLISHED.get((family(each), name.split()[0]))
            said = "" if published is None else f" (published, full size of {family(each)}: {published})"
            findings[f"{each}, {name}: test accuracy in %{said}"] = spread(
                of(outcomes, name, each), "test_accuracy", 100
            )
            findings[f"{each}, {name}: parameters"] = parameters(scale.shape(each), model)
        node, anode = (of(outcomes, name, each) for name in pair)
        findings[f"{each}: NFE of the last epoch, ANODE / NODE"] = ratio(anode, node, "nfe_forward")
    return findings
