"""Table 1 of Chen et al. 2018: the test error of an ODE-Net, of residual blocks in its place, and of a perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from train_flows import recipes
from train_flows.paper import image_figures
from train_flows.paper.outcomes import Outcome
from train_flows.paper.report import AttemptInSittings, Report, at_epoch, mean, of, report
from train_flows.paper.scale import Scale, parameters

DATA = ("mnist",)
MODELS: dict[str, dict[str, Any]] = {
    "ODE-Net": recipes.ODENET,
    "ResNet": {**recipes.ODENET, "model": "resnet", "blocks": 6},
    "MLP": {"model": "mlp", "hidden": [300]},
}
PUBLISHED = {"ODE-Net": "0.42, 0.22M parameters", "ResNet": "0.41, 0.60M", "MLP": "1.60, 0.24M"}
SETTINGS: dict[str, Any] = {"epochs": 40, "batch_size": 128, "schedule": "cosine"}
LEAST_SIDE = 12  # of an image for the stem
PANELS = (("loss",), ("test_accuracy",), ("nfe_forward",))


def run(attempt_all: AttemptInSittings, scale: Scale, data: Sequence[str]) -> Report:
    """Train all three by Adam, without the random crops and the 160 epochs of the public code."""
    trials = [scale.trial(name, each, _model(scale, each, name), **SETTINGS) for each in data for name in MODELS]
    outcomes = attempt_all(trials)
    return report(outcomes, partial(image_figures.rows, outcomes, PANELS), _findings(outcomes, scale, data))


def _model(scale: Scale, data: str, name: str) -> dict[str, Any]:
    """A network of the scale; images too small for the stem are lifted to as many channels instead."""
    if name == "MLP":
        return MODELS[name]
    filters, (channels, side, _) = scale.filters(data, 64), scale.shape(data)
    small = {"stem": "none", "lift": "learned", "extra": filters - channels} if side < LEAST_SIDE else {}
    return {**MODELS[name], "filters": filters, **small}


def _findings(outcomes: Sequence[Outcome], scale: Scale, data: Sequence[str]) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for each in data:
        for name in MODELS:
            group = of(outcomes, name, each)
            errors = 100 - 100 * at_epoch(group, "test_accuracy")
            said = f"test error in % (published, full size of mnist: {PUBLISHED[name]})"
            findings[f"{each}, {name}: {said}"] = ", ".join(f"{error:.2f}" for error in errors) or "-"
            findings[f"{each}, {name}: parameters"] = parameters(scale.shape(each), _model(scale, each, name))
        findings[f"{each}: NFE of the ODE-Net in the last epoch"] = mean(of(outcomes, "ODE-Net", each), "nfe_forward")
    return findings
